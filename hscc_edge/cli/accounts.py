"""`hscc-edge accounts`: who may sign in to the dashboard, and which programs may use the HTTP door."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hscc_edge.cli.output import JsonFlag, Output
from hscc_edge.errors import ConfigError

if TYPE_CHECKING:
    from hscc_edge.serve.config import Config

app = typer.Typer(no_args_is_help=True, help="Who may sign in to the dashboard, and tokens of programs.")
ConfigFile = Annotated[Path, typer.Argument(help="Configuration (TOML) of the daemon.")]
Name = Annotated[str, typer.Argument(help="Letters, digits, dots, dashes and underscores.")]
FOR_TOKENS = 'the configuration has no file for tokens: set tokens = "tokens" in [web]'


@app.command()
def add(
    config: ConfigFile,
    name: Name,
    role: Annotated[str, typer.Option(help="viewer sees; operator sends again and switches models too.")] = "viewer",
    as_json: JsonFlag = False,
) -> None:
    """Make an account, or give it another password and role; the password is asked for, or read from stdin.

    Example: hscc-edge accounts add /etc/hscc-edge/serve.toml anna --role operator
    """
    from hscc_edge.serve.web.accounts import accounts_file, add_account

    state = _config(config).state
    new = add_account(accounts_file(state), name, role, _password())
    output = Output(as_json)
    output.say(f"{name}: {role}, {'made' if new else 'changed; sessions of this account have ended'}")
    output.result({"name": name, "role": role, "new": new})


@app.command()
def remove(config: ConfigFile, name: Name, as_json: JsonFlag = False) -> None:
    """Take an account or a program's token away; its sessions end at once.

    Example: hscc-edge accounts remove /etc/hscc-edge/serve.toml anna
    """
    from hscc_edge.serve.doors.tokens import remove_token
    from hscc_edge.serve.web.accounts import accounts_file, give_to_owner, read_accounts, remove_account

    settings = _config(config)
    path, tokens = accounts_file(settings.state), settings.web.tokens
    if tokens is not None and name not in read_accounts(path) and name in _names(tokens):
        kind = "token"
        remove_token(tokens, name)
        give_to_owner(settings.state, tokens)
    else:
        kind = "account"
        remove_account(path, name)
    output = Output(as_json)
    output.say(f"{name}: {kind} removed")
    output.result({"name": name, "kind": kind, "removed": True})


@app.command("list")
def show(config: ConfigFile, as_json: JsonFlag = False) -> None:
    """Show accounts with their roles, and the names of tokens.

    Example: hscc-edge accounts list /etc/hscc-edge/serve.toml
    """
    from hscc_edge.serve.web.accounts import accounts_file, read_accounts

    settings, output = _config(config), Output(as_json)
    accounts = read_accounts(accounts_file(settings.state))
    path = settings.web.tokens
    tokens = _names(path) if path is not None else []
    rows = [(account.name, account.role) for account in accounts.values()] + [(name, "token") for name in tokens]
    output.table("Accounts and tokens", ("Name", "Role"), rows, text=2)
    output.result(
        {"accounts": [{"name": item.name, "role": item.role} for item in accounts.values()], "tokens": tokens}
    )


@app.command()
def token(config: ConfigFile, name: Name, as_json: JsonFlag = False) -> None:
    """Make a bearer token for a program that sends by STOW-RS or reads the metrics; it is shown this once.

    Example: hscc-edge accounts token /etc/hscc-edge/serve.toml prometheus
    """
    from hscc_edge.serve.doors.tokens import add_token
    from hscc_edge.serve.web.accounts import give_to_owner

    settings = _config(config)
    path = settings.web.tokens
    if path is None:
        raise ConfigError(FOR_TOKENS)
    fresh = add_token(path, name)
    give_to_owner(settings.state, path)
    output = Output(as_json)
    output.say(fresh)
    output.result({"name": name, "token": fresh})


def _config(path: Path) -> Config:
    """The configuration, with its state directory made if it is not there."""
    from hscc_edge.serve.config_file import read_config
    from hscc_edge.serve.station import open_state

    config = read_config(path)
    open_state(config.state)
    return config


def _names(tokens: Path) -> list[str]:
    from hscc_edge.serve.doors.tokens import read_tokens

    return [item.name for item in read_tokens(tokens)] if tokens.exists() else []


def _password() -> str:
    """Asked for twice at a terminal, else the first line of stdin."""
    if sys.stdin.isatty():
        return str(typer.prompt("password", hide_input=True, confirmation_prompt=True, err=True))
    return sys.stdin.readline().rstrip("\r\n")
