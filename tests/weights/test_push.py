"""Uploads: huggingface_hub's own client against a server here that speaks the hub's protocol."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from dialogpt.cli.main import main
from dialogpt.weights import convert, export, open_checkpoint
from tests.helpers import same_weights
from tests.weights.hub_server import Hub, serve

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content:DeprecationWarning")  # huggingface_hub's call of httpx


@pytest.fixture(scope="module")
def exported(published: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "out"
    export(published, folder)
    return folder


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub where `me` may write with the token that is set, and empty caches."""
    with serve(Hub(tokens={"good": "me", "other": "somebody"})) as running:
        monkeypatch.setattr(constants, "ENDPOINT", running.url)
        template = running.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("DIALOGPT_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("HF_TOKEN", "good")
        yield running


def test_an_export_goes_to_the_hub_and_comes_back(
    server: Hub, exported: Path, published: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["push", str(exported), "me/bot"]) == 0
    assert capsys.readouterr().out.startswith(f"{server.url}/me/bot/commit/")
    assert server.files["me/bot"] == {path.name: path.read_bytes() for path in exported.iterdir()}
    assert server.commits == {"me/bot": ["Upload by dialogpt"]}  # one, with all of it
    assert server.private == set()
    assert same_weights(open_checkpoint("me/bot"), published)
    assert main(["push", str(exported), "me/bot"]) == 0  # it is there already
    assert main(["push", str(exported), "me/secret", "--private"]) == 0
    assert server.private == {"me/secret"}


def test_nothing_else_than_an_export_is_uploaded(
    server: Hub, exported: Path, published: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    convert(published, tmp_path / "ours")
    for folder in (published, tmp_path / "ours", tmp_path / "nothing"):
        assert main(["push", str(folder), "me/bot"]) == 1
        assert "is no exported checkpoint; make one with: dialogpt convert" in capsys.readouterr().err
    for name in ("bot", "me/", "a/b/c", "me/../x"):
        assert main(["push", str(exported), name]) == 1
        assert "expected OWNER/NAME" in capsys.readouterr().err
    assert server.requests == []


def test_folders_within_an_export_stay_here(server: Hub, exported: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(exported, tmp_path / "copy"))
    (folder / "notes").mkdir()
    (folder / "notes" / "secret.txt").write_text("x")
    assert main(["push", str(folder), "me/bot"]) == 0
    assert "notes/secret.txt" not in server.files["me/bot"]


@pytest.mark.parametrize(
    ("token", "name", "sentence"),
    [
        (None, "me/bot", "nobody is logged in; log in with: hf auth login"),
        ("wrong", "me/bot", "the hub does not know the token; make one with the right to write"),
        ("other", "me/bot", "the token has no right to write to me; use one that has, or a name of your own"),
    ],
)
def test_who_may_not_write_is_told_why(
    server: Hub,
    exported: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    token: str | None,
    name: str,
    sentence: str,
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    if token is not None:
        monkeypatch.setenv("HF_TOKEN", token)
    assert main(["push", str(exported), name]) == 1
    err = capsys.readouterr().err
    assert f"{name} could not be uploaded: {sentence}" in err
    assert err.count("\n") == 1
    assert name not in server.files


def test_without_a_network_it_is_a_sentence(
    server: Hub, exported: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert main(["push", str(exported), "me/bot"]) == 1
    assert "the hub (http://127.0.0.1:9) cannot be reached" in capsys.readouterr().err
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert main(["push", str(exported), "me/bot"]) == 1
    assert "the hub is not asked, as HF_HUB_OFFLINE is set; unset it" in capsys.readouterr().err


def test_a_hub_that_fails_is_a_sentence(
    server: Hub, exported: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tests.weights import hub_server

    monkeypatch.setattr(hub_server._Handler, "commit", lambda self, *_: self.refuse(500, "Oops"))
    assert main(["push", str(exported), "me/bot"]) == 1
    err = capsys.readouterr().err
    assert "me/bot could not be uploaded" in err
    assert "try again later" in err
    assert json.loads((exported / "config.json").read_text())["model_type"] == "gpt2"  # nothing here is changed
