"""The OpenAPI document is true: what it describes is taken, and what is made of it at random gives no 5xx.

`CHAINRULE_REQUESTS=10000` sends so many requests.
"""

from __future__ import annotations

import os
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chainrule.testing.servers import Server

schemathesis = pytest.importorskip("schemathesis", reason="needs schemathesis: pip install chainrule[fuzz]")
pytestmark = [pytest.mark.unit, pytest.mark.filterwarnings("ignore")]  # those of schemathesis itself

MANY = int(os.environ.get("CHAINRULE_REQUESTS", "200"))


@pytest.mark.parametrize("mode", ["POSITIVE", "NEGATIVE"])
def test_requests_made_of_the_document(server: Server, mode: str) -> None:
    """What fits the document, and what does not; each answer has the form that the document promises."""
    from_document = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    wanted = schemathesis.GenerationMode[mode]
    operations = [found.ok() for found in from_document.get_all_operations()]
    able = [one for one in operations if mode == "POSITIVE" or one.body]
    checks = [
        schemathesis.checks.not_a_server_error,
        schemathesis.checks.load_all_checks() or schemathesis.checks.CHECKS.get_one("response_schema_conformance"),
    ]
    sent = dict[str, int]()

    @settings(max_examples=MANY // 2, suppress_health_check=list(HealthCheck), deadline=None, database=None)
    @given(st.one_of([one.as_strategy(generation_mode=wanted) for one in able]))
    def ask(case: Any) -> None:
        answer = case.call(base_url=server.url, timeout=60)
        sent[case.path] = sent.get(case.path, 0) + 1
        case.validate_response(answer, checks=checks)

    ask()
    assert set(sent) == {one.path for one in able}
    assert server.process.poll() is None
