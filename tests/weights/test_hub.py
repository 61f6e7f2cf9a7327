"""Names on the hub: huggingface_hub's own client against a server here that speaks the hub's protocol."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub import constants

from dialogpt.cli.main import main
from dialogpt.weights import CheckpointError, convert, hub, open_checkpoint
from tests.helpers import WAIT_SECONDS, needs_links, same_weights
from tests.weights.hub_server import COMMIT, Hub, serve

NAME = "someone/small-bot"


@pytest.fixture
def server(published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub with one small checkpoint, and empty caches."""
    with serve(Hub()) as running:
        running.add(NAME, published)
        running.files[NAME] |= {"README.md": b"read me", "tf_model.h5": b"\x89HDF", "onnx/model.bin": b"x"}
        monkeypatch.setattr(constants, "ENDPOINT", running.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", running.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("DIALOGPT_CACHE", str(tmp_path / "cache"))
        yield running


def entries(tmp_path: Path) -> list[str]:
    """What lies in our cache, hidden files too, without its own bookkeeping."""
    return [path.name for path in tmp_path.glob("cache/*--*/*") if path.name != "refs"]


def test_a_name_is_downloaded_converted_once_and_found_without_a_network(
    server: Hub, published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = open_checkpoint(NAME)
    assert same_weights(first, published)
    assert first.ours
    assert first.path.parent.parent == tmp_path / "cache"
    assert first.origin().name == f"{NAME}@{COMMIT}"
    assert first.origin().sha256 == open_checkpoint(published).sha256()
    asked = {request.split()[1] for request in server.requests}
    assert asked == {
        NAME,
        "README.md",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "vocab.json",
        "merges.txt",
    }
    server.requests.clear()
    assert same_weights(NAME, published)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)  # not even the library is needed any more
    assert open_checkpoint(NAME).path == first.path
    assert server.requests == []


def test_a_revision_is_asked_for_and_kept_apart(server: Hub, tmp_path: Path) -> None:
    assert open_checkpoint(f"{NAME}@v1.0").origin().name == f"{NAME}@{COMMIT}"
    assert [entry.revisions for entry in hub.cached()] == [("v1.0",)]
    open_checkpoint(NAME)
    assert [entry.revisions for entry in hub.cached()] == [("main", "v1.0")]  # the same commit, converted once
    with pytest.raises(CheckpointError, match=f"{NAME} has no revision 'gone' on the hub"):
        open_checkpoint(f"{NAME}@gone")


def test_another_version_of_our_format_converts_again(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    before = open_checkpoint(NAME).path
    refs = next(before.parent.glob("refs/main"))
    refs.write_text(refs.read_text().replace("-v1", "-v0"))
    before.rename(before.with_name(before.name.replace("-v1", "-v0")))
    assert open_checkpoint(NAME).path == before


@pytest.mark.parametrize("form", ["bin", "shards", "pkl"])
def test_every_container_is_fetched(server: Hub, published: Path, tmp_path: Path, form: str) -> None:
    from transformers import GPT2LMHeadModel

    network = GPT2LMHeadModel.from_pretrained(published)
    files = server.files[NAME]
    del files["model.safetensors"], files["config.json"]
    folder = tmp_path / "form"
    folder.mkdir()
    if form == "shards":
        network.save_pretrained(folder, max_shard_size="40KB")
    else:
        path = folder / ("pytorch_model.bin" if form == "bin" else "small_ft.pkl")
        torch.save(network.state_dict(), path, _use_new_zipfile_serialization=form == "bin")
    files |= {path.name: path.read_bytes() for path in folder.iterdir()}
    assert same_weights(open_checkpoint(NAME, n_head=3), published)


def test_a_connection_that_drops_in_the_middle_is_taken_up_again(server: Hub, published: Path) -> None:
    server.drops = {"model.safetensors": 2}
    assert same_weights(NAME, published)
    assert server.requests.count("GET model.safetensors") == 3


def test_a_connection_that_always_drops_is_a_sentence_and_leaves_nothing(
    server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)
    server.drops = {"model.safetensors": -1}
    with pytest.raises(CheckpointError, match=f"{NAME}: the download of model.safetensors broke off .* run the same"):
        open_checkpoint(NAME)
    assert entries(tmp_path) == []
    server.drops = {}
    open_checkpoint(NAME)


@pytest.mark.parametrize("file", ["model.safetensors", "merges.txt"])
def test_a_file_with_another_checksum_is_refused_and_fetched_again(
    server: Hub, published: Path, tmp_path: Path, file: str
) -> None:
    server.damaged = {file}
    with pytest.raises(CheckpointError, match=f"{file} arrived damaged .* was removed; run the same command again"):
        open_checkpoint(NAME)
    assert entries(tmp_path) == []
    server.damaged = set()
    assert same_weights(NAME, published)


def test_a_missing_file_is_a_sentence(server: Hub, tmp_path: Path) -> None:
    server.lost = {"vocab.json"}
    with pytest.raises(CheckpointError, match=f"{NAME}: the hub lists vocab.json and lacks it"):
        open_checkpoint(NAME)
    server.lost = set()
    del server.files[NAME]["model.safetensors"]
    with pytest.raises(
        CheckpointError, match=r"tf_model.h5 is TensorFlow.s weights.*\(on the hub there is README.md, config.json"
    ):
        open_checkpoint(NAME)
    index = {"weight_map": {"wte.weight": "model-1.safetensors"}}
    server.files[NAME]["model.safetensors.index.json"] = json.dumps(index).encode()
    with pytest.raises(CheckpointError, match="index.json names model-1.safetensors, which the hub does not have"):
        open_checkpoint(NAME)
    index = {"weight_map": {"wte.weight": "../../model-1.safetensors"}}
    server.files[NAME]["model.safetensors.index.json"] = json.dumps(index).encode()
    shutil.rmtree(tmp_path / "hf")
    with pytest.raises(CheckpointError, match="points outside its folder"):
        open_checkpoint(NAME)
    assert entries(tmp_path) == []


def test_what_is_not_there_or_not_open_is_a_sentence(server: Hub) -> None:
    with pytest.raises(CheckpointError, match="no such checkpoint on the hub; check the name or, if it is private"):
        open_checkpoint("someone/else")
    server.gated = {NAME}
    with pytest.raises(CheckpointError, match=f"{NAME} wants its terms accepted on the hub"):
        open_checkpoint(NAME)
    with pytest.raises(CheckpointError, match="name a checkpoint on the Hugging Face hub as owner/name"):
        open_checkpoint("gpt2")  # might be a mistyped folder: nothing is asked
    assert all("gpt2" not in request for request in server.requests)


def test_a_checkpoint_that_cannot_be_used_is_named_and_not_kept(server: Hub, tmp_path: Path) -> None:
    server.files[NAME]["config.json"] = b'{"model_type": "llama"}'
    with pytest.raises(CheckpointError, match=f"{NAME}@{COMMIT}: .*model_type must be 'gpt2'"):
        open_checkpoint(NAME)
    assert entries(tmp_path) == []


def test_a_hub_that_never_answers_is_a_sentence(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """It accepted the connection and kept it: the command waited for ever, without a word."""
    monkeypatch.setattr(hub, "HUB_TIMEOUT_SECONDS", 0.3)
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{listening.getsockname()[1]}")
        with pytest.raises(
            CheckpointError, match=r"the Hugging Face hub \(http://127.0.0.1:\d+\) cannot be reached \(.*time"
        ):
            open_checkpoint(NAME)


def test_a_folder_for_downloads_that_cannot_be_written_is_named(
    server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "hf"))

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", full)
    with pytest.raises(CheckpointError, match="hf cannot be written: No space left on device; set HF_HOME to a folder"):
        open_checkpoint(NAME)


def test_a_slip_in_a_path_is_not_asked_of_the_hub(server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "someone").mkdir()
    (tmp_path / "someone" / "model.safetensors").touch()
    with pytest.raises(
        CheckpointError, match=r"no folder or file 'someone/small-bot'.*; the folder someone has model.safetensors"
    ):
        open_checkpoint(NAME)
    assert server.requests == []
    open_checkpoint(f"{NAME}@main")


def test_heads_that_were_said_belong_to_the_copy(server: Hub, published: Path) -> None:
    """A first try with other heads stayed in the way of the right one."""
    del server.files[NAME]["config.json"]
    assert open_checkpoint(NAME, n_head=4).config.n_head == 4
    assert same_weights(open_checkpoint(NAME, n_head=3), published)
    assert open_checkpoint(NAME, n_head=4).config.n_head == 4


def test_a_full_disk_is_a_sentence_before_the_download(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    server.claimed = {"model.safetensors": 10**15}
    with pytest.raises(
        CheckpointError, match=r"takes 2,000,000,\d+ MB, downloaded and converted, and .* MB free; make"
    ):
        open_checkpoint(NAME)
    assert not [request for request in server.requests if request.startswith("GET")]


@pytest.mark.parametrize("by", ["us", "another program", "in pieces"])
@pytest.mark.parametrize("reason", ["offline", "no network"])
def test_without_a_network_what_was_downloaded_is_used(
    server: Hub, published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by: str, reason: str
) -> None:
    if by == "another program":
        huggingface_hub.snapshot_download(NAME)
    else:
        if by == "in pieces":  # which makes huggingface_hub call the whole incomplete
            huggingface_hub.snapshot_download(NAME, allow_patterns=["*.safetensors"])
        open_checkpoint(NAME)
        shutil.rmtree(tmp_path / "cache")
    assert hub.snapshot(NAME) is not None
    if reason == "offline":
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    else:
        unreachable(monkeypatch)
    assert same_weights(NAME, published)
    assert entries(tmp_path) == []  # only the hub knows whether that was all
    with pytest.raises(
        CheckpointError, match="nothing of it is cached. (Unset it|Try again with a network), or download"
    ):
        open_checkpoint("someone/else")


def test_half_a_download_is_not_taken_for_the_whole(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without its own vocabulary GPT-2's was used, and the copy was kept for ever."""
    for file in ("config.json", "model.safetensors"):
        huggingface_hub.hf_hub_download(NAME, file)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match="only config.json, model.safetensors of it is cached. Unset it"):
        open_checkpoint(NAME)


def unreachable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Point the client at a closed port."""
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")


def test_without_the_library_the_install_command_is_named(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(
        CheckpointError, match=r"takes huggingface_hub: pip install .*\[hub\].*\. Or download config.json"
    ):
        open_checkpoint(NAME)


def test_a_cache_that_cannot_be_written_is_a_sentence(
    server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("DIALOGPT_CACHE", str(tmp_path / "file"))
    with pytest.raises(
        CheckpointError, match="file/someone--small-bot cannot be written: Not a dir.*; set DIALOGPT_CACHE to a"
    ):
        open_checkpoint(NAME)


def test_a_file_that_another_program_has_is_a_sentence_with_advice(
    server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        error = PermissionError(errno.EACCES, "Access is denied")
        error.winerror = 32  # type: ignore[attr-defined]
        raise error

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
    monkeypatch.setattr(Path, "replace", refuse)
    for call in (lambda: open_checkpoint(NAME), lambda: hub._record(tmp_path / "cache", "main", "a-b-v1")):
        with pytest.raises(CheckpointError, match=r"cannot be written: Access is denied; if another program, such as"):
            call()


def test_a_lock_of_the_cache_that_cannot_be_taken_is_a_sentence(server: Hub, tmp_path: Path) -> None:
    (tmp_path / "cache" / ".locks" / "someone--small-bot.lock").mkdir(parents=True)
    with pytest.raises(CheckpointError, match=r"someone--small-bot\.lock cannot be locked: .*; remove it if it is no"):
        open_checkpoint(NAME)


def test_what_a_killed_conversion_left_is_cleared_away(server: Hub, published: Path, tmp_path: Path) -> None:
    left = tmp_path / "cache" / "someone--small-bot" / ".0123-4567-v1.partial-1-00"
    left.mkdir(parents=True)
    (left / "config.json").touch()
    assert same_weights(NAME, published)
    assert len(entries(tmp_path)) == 1


def test_the_cache_is_listed_and_cleared(server: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    server.files["other/bot"] = server.files[NAME]
    for name in (NAME, "other/bot"):
        open_checkpoint(name)
    (tmp_path / "cache" / "mine--too").mkdir()  # somebody's own: DIALOGPT_CACHE may be any folder
    (tmp_path / "cache" / "mine--too" / "a-b-v1").touch()
    assert main(["cache"]) == 0
    out = capsys.readouterr().out
    assert re.search(rf"^{NAME} +main, \d\.\d MB, {tmp_path}", out, re.MULTILINE)
    assert f"kept in {tmp_path / 'cache'}: 2, " in out
    assert main(["cache", "--clear", "no/such"]) == 1
    assert "the cache holds no 'no/such'" in capsys.readouterr().err
    assert main(["cache", "--clear", f"{NAME}@main"]) == 1
    assert f"name '{NAME}' without a revision" in capsys.readouterr().err
    assert main(["cache", "--clear", NAME]) == 0
    assert "what was downloaded for them stays" in capsys.readouterr().out
    assert [entry.name for entry in hub.cached()] == ["other/bot"]
    assert main(["cache", "--clear"]) == 0
    assert {path.name for path in (tmp_path / "cache").iterdir()} == {"mine--too", ".locks"}
    assert (tmp_path / "cache" / "mine--too" / "a-b-v1").exists()


def test_an_empty_name_clears_nothing(server: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    """A shell's unset variable removed everything."""
    open_checkpoint(NAME)
    assert main(["cache", "--clear", ""]) == 1
    assert len(hub.cached()) == 1


def test_what_a_kill_left_is_listed_and_can_be_cleared(
    server: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    left = tmp_path / "cache" / "someone--small-bot" / ".0123-4567-v1.partial-1-0f"
    left.mkdir(parents=True)
    (left / "model.safetensors").write_bytes(b"x" * 1_000_000)
    assert main(["cache"]) == 0
    assert re.search(rf"^{NAME} +no revision, 1.0 MB, ", capsys.readouterr().out, re.MULTILINE)
    assert main(["cache", "--clear", NAME]) == 0
    assert not left.exists()


@needs_links
def test_foreign_content_of_the_cache_does_no_harm(server: Hub, tmp_path: Path) -> None:
    path = open_checkpoint(NAME).path
    (path.parent / "refs" / "strange").write_bytes(b"\xff\xfe")
    foreign = tmp_path / "cache" / "x--y" / "a-b-v1"
    foreign.mkdir(parents=True)
    (foreign / "dangling").symlink_to("nowhere")
    assert [entry.name for entry in hub.cached()] == [NAME]
    hub.clear()
    assert (foreign / "dangling").is_symlink()
    assert (path.parent / "refs" / "strange").exists()


def test_clearing_waits_for_a_conversion(server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It took away what another process was writing, and the lock under it."""
    order = []
    honest = hub.write_ours

    def slow(*arguments: Any, **options: Any) -> Any:
        clearing.start()
        time.sleep(0.3)
        report = honest(*arguments, **options)
        order.append("converted")
        return report

    def clear() -> None:
        with hub._locked(tmp_path / "cache" / "someone--small-bot"):
            order.append("cleared")

    clearing = threading.Thread(target=clear)
    monkeypatch.setattr(hub, "write_ours", slow)
    open_checkpoint(NAME)
    clearing.join()
    assert order == ["converted", "cleared"]


def test_a_proof_is_against_the_same_commit(server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another program had fetched a newer one since, and that was compared: "do not use it"."""
    open_checkpoint(NAME)
    asked: list[str] = []
    monkeypatch.setattr(hub, "snapshot", lambda name: asked.append(name))
    assert main(["convert", NAME, str(tmp_path / "ours"), "--verify"]) == 0
    assert asked == [f"{NAME}@{COMMIT}"]


def test_a_damaged_copy_says_how_to_be_rid_of_it(server: Hub) -> None:
    (open_checkpoint(NAME).path / "model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match=f"it is a converted copy, and dialogpt cache --clear {NAME} removes it"):
        open_checkpoint(NAME)


def test_what_was_left_out_is_still_known(server: Hub, published: Path, tmp_path: Path) -> None:
    """The converted copy remembers which tensors of the published file it did without, and why."""
    from transformers import GPT2LMHeadModel

    state = GPT2LMHeadModel.from_pretrained(published).state_dict()
    state["transformer.h.0.attn.bias"] = torch.ones(1, 1, 8, 8)
    torch.save(state, tmp_path / "pytorch_model.bin")
    del server.files[NAME]["model.safetensors"]
    server.files[NAME]["pytorch_model.bin"] = (tmp_path / "pytorch_model.bin").read_bytes()
    assert open_checkpoint(NAME).ignored.keys() == {"transformer.h.0.attn.bias", "lm_head.weight"}


def test_commands_take_names(server: Hub, published: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Through HF_ENDPOINT, as a person sets it: reply, info, and convert with its proof against what was downloaded."""
    environment = os.environ | {
        "HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0",
        "DIALOGPT_CACHE": str(tmp_path / "cache"),
    }  # fmt: skip

    def run(*arguments: str) -> SimpleNamespace:
        command = [sys.executable, "-m", "dialogpt", *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=WAIT_SECONDS)  # type: ignore[return-value]

    first = run("reply", "--model", NAME, "--seed", "1", "Hi!")
    assert first.returncode == 0, first.stderr
    assert f"dialogpt: {NAME}: downloading 6 of its files, 0." in first.stderr
    asked = len(server.requests)
    again = run("reply", "--model", NAME, "--seed", "1", "Hi!")
    assert (again.returncode, again.stdout, again.stderr) == (0, first.stdout, "")
    assert len(server.requests) == asked
    proof = run("convert", NAME, str(tmp_path / "ours"), "--verify")
    assert proof.returncode == 0, proof.stderr
    assert re.search(r"^logits +equal ", proof.stdout, re.MULTILINE)
    told = run("info", NAME)
    assert re.search(rf"^origin +{NAME}@{COMMIT}, sha256 ", told.stdout, re.MULTILINE)
    missing = run("chat", "--model", "no/such")
    assert missing.returncode == 1
    assert missing.stderr.startswith("dialogpt: error: there is no folder or file 'no/such', and no such checkpoint")
    assert "Traceback" not in missing.stderr


def test_a_copy_of_a_copy_keeps_its_origin(server: Hub, tmp_path: Path) -> None:
    convert(NAME, tmp_path / "ours", dtype="float16")
    assert open_checkpoint(tmp_path / "ours").origin() == open_checkpoint(NAME).origin()
