"""Where the package index is and how it is reached: as pip has been told, without running pip."""

from __future__ import annotations

import configparser
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import platformdirs
from pypi_simple import PYPI_SIMPLE_ENDPOINT

from chainrule.errors import AssetError, Problem, Where


@dataclass(frozen=True)
class Settings:
    """Index addresses in the order they are asked, and a file or folder of certificate authorities (or None)."""

    endpoints: tuple[str, ...]
    certificates: str | None


def pip_settings() -> Settings:
    """pip's index-url, extra-index-url and cert, from its environment variables or else its configuration files.

    Only http(s) indexes are used. Proxies, REQUESTS_CA_BUNDLE and CURL_CA_BUNDLE are honoured by requests itself;
    SSL_CERT_FILE is used where none of these is set.

    Raises:
        AssetError: a configuration file of pip cannot be parsed.
    """
    values: dict[str, str] = {}
    for file in _configuration_files():
        values |= _read(file)
    for key in ("index-url", "extra-index-url", "cert"):
        named = os.environ.get("PIP_" + key.upper().replace("-", "_"))
        if named:
            values[key] = named
    addresses = [values.get("index-url", PYPI_SIMPLE_ENDPOINT), *values.get("extra-index-url", "").split()]
    endpoints = tuple(dict.fromkeys(a for a in addresses if urlsplit(a).scheme in ("http", "https")))
    return Settings(endpoints, values.get("cert") or os.environ.get("SSL_CERT_FILE"))


def _configuration_files() -> Iterator[Path]:
    """Weakest first, in the order of pip's documentation: global, user, environment, then PIP_CONFIG_FILE."""
    named = os.environ.get("PIP_CONFIG_FILE")
    if named == os.devnull:
        return
    file = "pip.ini" if os.name == "nt" else "pip.conf"
    for folder in platformdirs.site_config_dir("pip", appauthor=False, multipath=True).split(os.pathsep):
        yield Path(folder) / file
    if os.name != "nt":
        yield Path("/etc") / file
    yield Path.home() / ("pip" if os.name == "nt" else ".pip") / file
    yield Path(platformdirs.user_config_dir("pip", appauthor=False, roaming=True)) / file
    yield Path(sys.prefix) / file
    if named:
        yield Path(named)


def _read(file: Path) -> dict[str, str]:
    if not file.is_file():
        return {}
    parser = configparser.RawConfigParser()
    try:
        parser.read(file, encoding="utf-8")
    except (configparser.Error, UnicodeDecodeError) as error:
        problem = Problem(
            where=Where(file=str(file)),
            expected="a configuration file of pip",
            got=type(error).__name__,
            todo="Correct it; `pip config debug` lists the files pip reads.",
        )
        raise AssetError("The configuration of pip cannot be read.", [problem]) from error
    found: dict[str, str] = {}
    for section in ("global", "install"):
        if parser.has_section(section):
            found |= {key.replace("_", "-"): value for key, value in parser.items(section)}
    return {key: found[key] for key in ("index-url", "extra-index-url", "cert") if found.get(key)}
