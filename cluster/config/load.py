"""Load a `FleetConfig` from a YAML file and apply command-line options."""

import os

from pydantic import ValidationError

from qwenfleet.cluster.config.explain import Spot, explain
from qwenfleet.cluster.config.fleet import FleetConfig, dump
from qwenfleet.cluster.config.yaml_lines import Loc, parse, spell
from qwenfleet.cluster.errors import ConfigError


def load(path: str | os.PathLike[str]) -> FleetConfig:
    """Read a fleet from a YAML file. Raises `ConfigError`."""
    file = os.fspath(path)
    document = parse(_read(file), file)
    try:
        return FleetConfig.model_validate(document.value)
    except ValidationError as error:
        raise explain(
            error, FleetConfig, lambda loc: Spot(spell(loc), file, document.line(loc))
        ) from error


def with_overrides(
    config: FleetConfig,
    *,
    model: str | None = None,
    engines: int | None = None,
    gateways: int | None = None,
    host: str | None = None,
    port: int | None = None,
) -> FleetConfig:
    """Apply command-line options. Raises a `ConfigError` that names the option.

    `model` serves only that model: with its section if `config` has one, else with defaults.
    """
    tree = dump(config)
    if model is not None:
        chosen = [section for section in tree["models"] if section["id"] == model]
        tree["models"] = chosen or [{"id": model}]
    if engines is not None:
        for section in tree["models"]:
            section["replicas"] = {"min": engines, "max": engines}
    gateway = {"replicas": gateways, "host": host, "port": port}
    tree["gateway"] |= {key: value for key, value in gateway.items() if value is not None}
    try:
        return FleetConfig.model_validate(tree)
    except ValidationError as error:
        raise explain(error, FleetConfig, lambda loc: Spot(_option(loc))) from error


def _option(loc: Loc) -> str:
    """The command-line option that sets `loc`."""
    match loc:
        case ("models", int(), "id"):
            return "--model"
        case ("models", int(), "replicas", *_):
            return "--engines"
        case ("gateway", "replicas"):
            return "--gateways"
        case ("gateway", "host" | "port" as key):
            return f"--{key}"
    return spell(loc)


def _read(file: str) -> str:
    try:
        with open(file, "rb") as stream:
            data = stream.read()
        return data.decode("utf-8-sig")
    except FileNotFoundError as error:
        raise ConfigError("the file does not exist", "Check the path.", file) from error
    except IsADirectoryError as error:
        raise ConfigError("this is a directory", "Name the YAML file in it.", file) from error
    except OSError as error:
        problem = f"the file cannot be read: {error.strerror}"
        raise ConfigError(problem, "Check its permissions.", file) from error
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        problem = f"byte 0x{error.object[error.start]:02x} is not UTF-8"
        raise ConfigError(problem, "Save the file as UTF-8.", file, line) from error
