"""Nothing phones home: with every outbound connection refused and counted, nothing is counted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from chainrule.system.telemetry import SWITCHES, turn_off_telemetry

pytestmark = pytest.mark.unit

PROGRAM = """
import ipaddress, json, socket, sys

attempts = []

def outside(host):
    try:
        return not ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host not in (None, "", "localhost", b"localhost")

def refusing(name):
    plain = getattr(socket.socket, name)
    def call(self, address, *rest):
        if self.family in (socket.AF_INET, socket.AF_INET6) and outside(address[0]):
            attempts.append([name, str(address)])
            raise ConnectionRefusedError(111, "refused by the test")
        return plain(self, address, *rest)
    setattr(socket.socket, name, call)

for name in ("connect", "connect_ex"):
    refusing(name)

look_up = socket.getaddrinfo
def getaddrinfo(host, *rest, **named):
    if outside(host):
        attempts.append(["getaddrinfo", str(host)])
        raise socket.gaierror(-2, "refused by the test")
    return look_up(host, *rest, **named)
socket.getaddrinfo = getaddrinfo

try:  # the guard works
    socket.socket().connect(("192.0.2.1", 80))
except OSError:
    assert attempts.pop()[0] == "connect", attempts
assert not attempts

import chainrule
from chainrule.system.telemetry import turn_off_telemetry
turn_off_telemetry()
import threading
from chainrule.system.extras import require
for optional in ("datasets", "mlflow", "gguf"):
    try:
        require(optional, extra="all", purpose="test")
    except chainrule.errors.MissingExtraError:
        pass
import tokenizers, torch, transformers
folder = sys.argv[1]
vocabulary = {word: number for number, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad"])}
words = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
transformers.PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]").save_pretrained(folder)
sizes = dict(vocab_size=7, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
transformers.BertForSequenceClassification(transformers.BertConfig(**sizes)).save_pretrained(folder)
tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
model = transformers.AutoModelForSequenceClassification.from_pretrained(folder)
with torch.no_grad():
    assert model(**tokenizer("good bad", return_tensors="pt")).logits.shape == (1, 2)
for thread in threading.enumerate():
    if thread is not threading.current_thread() and not thread.daemon:
        thread.join(5)
print(json.dumps(attempts))
"""


def test_loading_and_using_a_local_model_connects_to_nothing(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path / "model")],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == []


def test_the_libraries_see_the_switches() -> None:
    program = (
        "from chainrule.system.telemetry import turn_off_telemetry; turn_off_telemetry()\n"
        "from huggingface_hub import constants; assert constants.HF_HUB_DISABLE_TELEMETRY is True\n"
        "assert constants.HF_HUB_DISABLE_UPDATE_CHECK is True\n"
        "from transformers.utils.hub import http_user_agent; assert 'telemetry/off' in http_user_agent()\n"
        "import importlib.util as find\n"
        "if find.find_spec('datasets'):\n"
        "    from datasets import config; assert config.HF_UPDATE_DOWNLOAD_COUNTS is False\n"
        "if find.find_spec('mlflow'):\n"
        "    from mlflow.environment_variables import MLFLOW_DISABLE_TELEMETRY as off; assert off.get() is True\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr


def test_a_setting_that_says_otherwise_is_overruled(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in SWITCHES:
        monkeypatch.setenv(name, "unset")
    turn_off_telemetry()
    assert {name: os.environ[name] for name in SWITCHES} == SWITCHES
