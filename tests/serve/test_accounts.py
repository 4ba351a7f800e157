"""Accounts: what is kept of a password, who is let in, how often one may try, and the verb that keeps them."""

import io
import json
import stat
import sys

import pytest
from typer.main import get_command

from hscc_edge.cli import app
from hscc_edge.errors import ConfigError, StorageError
from hscc_edge.serve.doors.tokens import bearer, read_tokens
from hscc_edge.serve.web import accounts, attempts

PASSWORD = "correct horse battery"
CONFIG = 'state = "state"\n[[model]]\nbundle = "bundle"\n[web]\nenabled = true\ntokens = "tokens"\n'


@pytest.fixture
def path(tmp_path):
    """Where the accounts are to be."""
    return accounts.accounts_file(tmp_path)


def test_a_password_is_kept_as_an_argon2id_hash_that_only_the_owner_reads(path):
    assert accounts.add_account(path, "olga", "operator", PASSWORD)
    text = path.read_text()
    assert "$argon2id$v=19$m=65536,t=3" in text and PASSWORD not in text
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    known = accounts.read_accounts(path)
    assert accounts.authenticate(known, "olga", PASSWORD) == known["olga"]
    assert accounts.authenticate(known, "olga", PASSWORD + "x") is None
    assert PASSWORD not in repr(known) and "argon2" not in repr(known)


def test_a_name_that_is_not_there_takes_a_hash_too(path, monkeypatch):
    hashed = []
    real = accounts._hasher()

    class Counting:
        def hash(self, password):
            return real.hash(password)

        def verify(self, kept, password):
            hashed.append(1)
            return real.verify(kept, password)

    monkeypatch.setattr(accounts, "_hasher", Counting)
    assert accounts.authenticate({}, "nobody", PASSWORD) is None and hashed == [1]


def test_another_password_ends_sessions_and_is_told_from_a_new_account(path):
    accounts.add_account(path, "olga", "viewer", PASSWORD)
    before = accounts.read_accounts(path)["olga"]
    assert not accounts.add_account(path, "olga", "operator", PASSWORD + " two")
    after = accounts.read_accounts(path)["olga"]
    assert after.generation > before.generation and after.role == "operator"
    accounts.remove_account(path, "olga")
    assert accounts.read_accounts(path) == {}
    with pytest.raises(ConfigError, match="no account is named 'olga': expected one of none"):
        accounts.remove_account(path, "olga")


@pytest.mark.parametrize(
    ("name", "role", "password", "said"),
    [
        ("a b", "viewer", PASSWORD, "the account's name is 'a b'"), ("", "viewer", PASSWORD, "the account's name is"),
        ("../x", "viewer", PASSWORD, "the account's name"), ("x" * 65, "viewer", PASSWORD, "the account's name"),
        ("olga", "root", PASSWORD, "the role is 'root': expected one of viewer, operator"),
        ("olga", "viewer", "short", "has 5 characters: expected 12 to 256"),
        ("olga", "viewer", "x" * 257, "has 257 characters"), ("olga", "viewer", "ababababababab", "choose another"),
        ("olga.petrovna", "viewer", "Olga.Petrovna", "choose another"),
    ],
)  # fmt: skip
def test_what_is_not_acceptable_is_told_without_the_password(name, role, password, said, path):
    with pytest.raises(ConfigError) as raised:
        accounts.add_account(path, name, role, password)
    assert said in str(raised.value) and not path.exists()
    assert password not in str(raised.value) or password.lower() in said.lower()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"accounts": [{}]}', '{"accounts": [{"name": "a", "role": "b"}]}'])
def test_a_damaged_file_is_an_error_and_stays_as_it_is(text, path):
    path.write_text(text)
    for action in (
        lambda: accounts.read_accounts(path), lambda: accounts.add_account(path, "olga", "viewer", PASSWORD),
    ):  # fmt: skip
        with pytest.raises(StorageError, match="restore the file from a backup"):
            action()
    assert path.read_text() == text


def test_tries_are_counted_by_account_and_by_address():
    tries = attempts.Attempts()
    for _ in range(attempts.MOST["pair"]):
        assert tries.wait_s("10.0.0.1", "olga") == 0.0
    assert 0 < tries.wait_s("10.0.0.1", "OLGA") <= attempts.WINDOW_S
    assert tries.wait_s("10.0.0.2", "olga") == 0.0
    left = attempts.MOST["address"] - attempts.MOST["pair"]
    assert [tries.wait_s("10.0.0.1", f"n{number}") for number in range(left)] == [0.0] * left
    assert tries.wait_s("10.0.0.1", "fresh") > 0
    spread = [tries.wait_s(f"10.1.0.{number}", "olga") for number in range(60)]
    assert spread.count(0.0) == attempts.MOST["account"] - attempts.MOST["pair"] - 1


def test_the_right_password_forgets_its_own_tries_and_time_forgets_all(monkeypatch):
    tries, now = attempts.Attempts(), [1000.0]
    monkeypatch.setattr(attempts.time, "monotonic", lambda: now[0])
    for _ in range(4):
        tries.wait_s("a", "olga")
    tries.forget("a", "olga")
    for _ in range(attempts.MOST["pair"]):
        assert tries.wait_s("a", "olga") == 0.0
    assert tries.wait_s("a", "olga") == attempts.WINDOW_S
    now[0] += attempts.WINDOW_S
    assert tries.wait_s("a", "olga") == 0.0


def test_a_flood_from_many_addresses_takes_no_more_memory(monkeypatch):
    monkeypatch.setattr(attempts, "KEPT", 50)
    tries = attempts.Attempts()
    for number in range(1000):
        tries.wait_s(f"10.0.{number // 256}.{number % 256}", "olga")
    assert len(tries._tries) == 50 and tries.wait_s("10.9.9.9", "olga") > 0


def run(monkeypatch, capsys, *words: str, typed: str = "") -> str:
    monkeypatch.setattr(sys, "stdin", io.StringIO(typed))
    get_command(app).main(["accounts", *words], standalone_mode=False)
    return capsys.readouterr().out


def test_the_verb_adds_lists_and_removes(tmp_path, monkeypatch, capsys):
    config = tmp_path / "serve.toml"
    config.write_text(CONFIG)
    said = run(monkeypatch, capsys, "add", str(config), "olga", "--role", "operator", typed=PASSWORD + "\n")
    assert said == "olga: operator, made\n"
    known = accounts.read_accounts(tmp_path / "state" / "accounts.json")
    assert accounts.authenticate(known, "olga", PASSWORD) == known["olga"]
    assert stat.S_IMODE((tmp_path / "state").stat().st_mode) == 0o700
    made = json.loads(run(monkeypatch, capsys, "token", str(config), "prometheus", "--json"))
    assert bearer(read_tokens(tmp_path / "tokens"), f"Bearer {made['token']}") == "prometheus"
    listed = json.loads(run(monkeypatch, capsys, "list", str(config), "--json"))
    assert listed == {"accounts": [{"name": "olga", "role": "operator"}], "tokens": ["prometheus"]}
    assert "token removed" in run(monkeypatch, capsys, "remove", str(config), "prometheus")
    assert "account removed" in run(monkeypatch, capsys, "remove", str(config), "olga")
    assert json.loads(run(monkeypatch, capsys, "list", str(config), "--json")) == {"accounts": [], "tokens": []}


def test_a_token_needs_a_file_of_tokens(tmp_path, monkeypatch, capsys):
    config = tmp_path / "serve.toml"
    config.write_text(CONFIG.replace('tokens = "tokens"\n', ""))
    with pytest.raises(ConfigError, match=r"set tokens = \"tokens\" in \[web\]"):
        run(monkeypatch, capsys, "token", str(config), "prometheus")
