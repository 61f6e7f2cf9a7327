"""Checkpoints on the Hugging Face hub: download the files, convert them once, and find the result offline.

Downloading is huggingface_hub's (the `hub` extra): its cache, its progress bars, its token, its offline mode
(HF_HUB_OFFLINE) and its mirrors (HF_ENDPOINT). Ours are the choice of files, the check of their checksums, and the
cache of converted checkpoints (DIALOGPT_CACHE, else ~/.cache/dialogpt):

    microsoft--DialoGPT-small/
        refs/main                       the entry that the revision `main` was when it was fetched
        0f1d2c…-9a8b7c…-v1/             commit, checksum of the weights, version of our format: a folder of ours

An entry is complete or absent, and a revision refers to the same entry until it is cleared.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import math
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote

from dialogpt.errors import install_hint
from dialogpt.files.disk import lock, reason_of
from dialogpt.files.plain_file import require_plain_file
from dialogpt.weights.checkpoint import FORMAT_VERSION, open_path
from dialogpt.weights.convert import write_ours
from dialogpt.weights.folders import WEIGHT_FILES, no_weights, shard_names, weights_among
from dialogpt.weights.formats import CheckpointError, Progress, read_json, sha256_of
from dialogpt.weights.slips import missing

if TYPE_CHECKING:
    from huggingface_hub.hf_api import RepoSibling

logger = logging.getLogger(__name__)
HUB_TIMEOUT_SECONDS = 10.0  # seconds that the hub may take to answer; huggingface_hub's own default for files
TEXT_FILES = (
    "config.json",
    "generation_config.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "README.md",
)
_ENTRY = re.compile(r"\w+-\w+-v[0-9]+(-h[0-9]+)?", re.ASCII)
_REPOSITORY = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)
_PARTIAL = re.compile(rf"\.({_ENTRY.pattern}|removed)\.partial-[0-9]+-[0-9a-f]+", re.ASCII)
_BY_HAND = "download config.json, the weights, vocab.json and merges.txt elsewhere into a folder, and pass that folder"


@dataclass(frozen=True)
class Cached:
    """One converted checkpoint in the cache.

    Attributes:
        name: its repository, "owner/name".
        revisions: what was asked for when it was fetched.
        path: its folder.
        nbytes: its size on the disk.
    """

    name: str
    revisions: tuple[str, ...]
    path: Path
    nbytes: int


def cache_folder() -> Path:
    """Where converted checkpoints are kept."""
    own = os.environ.get("DIALOGPT_CACHE")
    return Path(own) if own else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dialogpt"


def converted(name: str, n_head: int | None = None, progress: Progress | None = None) -> Path:
    """The folder of a checkpoint on the hub in our format: from the cache, or else downloaded and converted.

    Without a network it is the folder of what was downloaded before, which is not kept as a conversion: only the hub
    knows whether that is all.

    Args:
        name: "owner/name", or "owner/name@revision".
        n_head: see `open_checkpoint`.
        progress: called before each tensor that is converted.

    Raises:
        CheckpointError: there is no such checkpoint, it cannot be fetched or used, or the disk is full.
    """
    repository, _, revision = name.partition("@")
    revision = revision or "main"
    folder = cache_folder() / repository.replace("/", "--")
    reference = quote(revision, safe="") + ("" if n_head is None else f"~{n_head}-heads")
    found = _recorded(folder, reference)
    if found is None:
        downloaded, complete = download(repository, revision)
        if not complete:
            return downloaded
        found = _convert(downloaded, f"{repository}@{downloaded.name}", folder, n_head, progress)
        _record(folder, reference, found.name)
    return found


def snapshot(name: str) -> Path | None:
    """The folder of a checkpoint as it was downloaded, if huggingface_hub's cache still has it; touches no network."""
    repository, _, revision = name.partition("@")
    try:
        from huggingface_hub import try_to_load_from_cache

        for file in ("config.json", *WEIGHT_FILES):
            path = try_to_load_from_cache(repository, file, revision=revision or "main")
            if isinstance(path, str):
                return Path(path).parent
    except Exception:  # not installed, or a name that it does not take
        return None
    return None


def _recorded(folder: Path, reference: str) -> Path | None:
    """The entry that a revision was when it was fetched, if our format is still the same."""
    entry = _referred(folder / "refs" / reference)
    fits = entry is not None and f"-v{FORMAT_VERSION}" in entry and (folder / entry / "config.json").is_file()
    return folder / entry if fits and entry is not None else None


def _referred(path: Path) -> str | None:
    """The name of an entry that a file of references holds."""
    try:
        require_plain_file(path)
        entry = path.read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return None
    return entry if _ENTRY.fullmatch(entry) else None


def _record(folder: Path, reference: str, entry: str) -> None:
    path = folder / "refs" / reference
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        temporary.write_text(entry, encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be written: {reason_of(error)}; {_ELSEWHERE}") from None


_ELSEWHERE = "set DIALOGPT_CACHE to a folder that has room and can be written"


def _convert(snapshot: Path, name: str, folder: Path, n_head: int | None, progress: Progress | None) -> Path:
    """Convert what was downloaded into the cache, once, even if several processes try."""
    try:
        checkpoint = replace(open_path(snapshot, n_head=n_head), name=name)
        told = "" if n_head is None or (snapshot / "config.json").exists() else f"-h{n_head}"
        entry = folder / f"{snapshot.name[:12]}-{checkpoint.sha256()[:12]}-v{FORMAT_VERSION}{told}"
        with _locked(folder):
            for left in filter(_is_partial, folder.iterdir()):  # left by a killed process
                shutil.rmtree(left, ignore_errors=True)
            if not entry.exists():
                write_ours(checkpoint, entry, progress=progress)
    except CheckpointError as error:
        raise CheckpointError(f"{name}: {error}") from None
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be written: {reason_of(error)}; {_ELSEWHERE}") from None
    return entry


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Lock a repository's folder; the lock file is outside of it, so that the folder can be removed."""
    locks = folder.parent / ".locks"
    locks.mkdir(parents=True, exist_ok=True)
    try:
        release = lock(locks / f"{folder.name}.lock", seconds=math.inf)
    except OSError as error:
        raise CheckpointError(str(error)) from None
    try:
        folder.mkdir(exist_ok=True)
        yield
        with suppress(OSError):  # there is something in it
            folder.rmdir()
    finally:
        release()


def _is_partial(path: Path) -> bool:
    return _PARTIAL.fullmatch(path.name) is not None and path.is_dir()


# ---- downloading ----


def download(repository: str, revision: str) -> tuple[Path, bool]:
    """Fetch the files that a checkpoint needs, and no others, into huggingface_hub's cache.

    Returns:
        Their folder, which is named for the commit, and whether the hub confirmed that these are all.

    Raises:
        CheckpointError: huggingface_hub is not installed; the hub cannot be reached and nothing is cached; there is no
            such repository, revision or file; a file arrived damaged; the disk has no room.
    """
    try:
        import huggingface_hub
        from huggingface_hub import errors
    except ImportError as error:
        if error.name != "huggingface_hub":
            raise CheckpointError(
                f"huggingface_hub is damaged ({error}); install it again: {install_hint('hub')}"
            ) from None
        raise CheckpointError(
            f"{missing(repository)}, and to fetch it from the Hugging Face hub takes "
            f"huggingface_hub: {install_hint('hub')}. Or {_BY_HAND}"
        ) from None
    name = repository if revision == "main" else f"{repository}@{revision}"
    try:
        hub = huggingface_hub.HfApi()
        listing = hub.model_info(repository, revision=revision, files_metadata=True, timeout=HUB_TIMEOUT_SECONDS)
    except errors.RevisionNotFoundError:
        raise CheckpointError(f"{repository} has no revision {revision!r} on the hub; look it up on its page") from None
    except errors.GatedRepoError:
        raise CheckpointError(
            f"{repository} wants its terms accepted on the hub; do that, then hf auth login"
        ) from None
    except errors.RepositoryNotFoundError:
        raise CheckpointError(
            f"{missing(repository)}, and no such checkpoint on the hub; check the name or, if it "
            f"is private, log in with: hf auth login"
        ) from None
    except errors.HFValidationError:
        raise CheckpointError(f"{missing(name)}, and it is no name on the hub; check it") from None
    except Exception as error:  # no network, or the hub's own trouble: each version has other types for it
        return _already_downloaded(name, repository, revision, error), False
    files = {file.rfilename: file for file in listing.siblings or ()}
    wanted = _wanted(name, files)
    _require_room(name, repository, str(listing.sha), [files[file] for file in wanted])
    fetched = [_fetch(name, repository, revision, files[file]) for file in wanted]
    index = next((path for path in fetched if path.name.endswith(".index.json")), None)
    if index is not None:
        shards = shard_names(index)
        if absent := [shard for shard in shards if shard not in files]:
            raise CheckpointError(f"{name}: {index.name} names {absent[0]}, which the hub does not have")
        _require_room(name, repository, str(listing.sha), [files[shard] for shard in shards])
        fetched += [_fetch(name, repository, revision, files[shard]) for shard in shards]
    if {path.parent.name for path in fetched} != {listing.sha}:
        raise CheckpointError(f"{name} changed on the hub while it was downloaded; run the same command again")
    return fetched[0].parent, True


def _already_downloaded(name: str, repository: str, revision: str, error: Exception) -> Path:
    """Without a network: what huggingface_hub's cache holds, if config, weights and vocabulary are there."""
    folder = snapshot(f"{repository}@{revision}")
    names = {path.name for path in folder.iterdir()} if folder is not None else set()
    vocabulary = names >= {"vocab.json", "merges.txt"} or "tokenizer.json" in names
    if folder is None or weights_among(names) is None or "config.json" not in names or not vocabulary:
        from huggingface_hub import constants

        reason = " ".join(str(error).split()) or type(error).__name__
        failed = f"the Hugging Face hub ({constants.ENDPOINT}) cannot be reached ({reason[:200]})"
        advice, held = "Try again with a network", f"only {', '.join(sorted(names)[:6])}" if names else "nothing"
        if constants.HF_HUB_OFFLINE:
            failed, advice = "the hub is not asked, as HF_HUB_OFFLINE is set", "Unset it"
        raise CheckpointError(
            f"{missing(name)}, {failed}, and {held} of it is cached. {advice}, or {_BY_HAND}"
        ) from None
    return folder


def _wanted(name: str, files: Iterable[str]) -> list[str]:
    """The files of a repository that a checkpoint is made of; shards of weights come later."""
    names = {file for file in files if "/" not in file}
    weights = weights_among(names)
    if weights is None:
        there = ", ".join(sorted(files)[:6]) or "nothing"
        raise CheckpointError(f"{no_weights(name, sorted(names))} (on the hub there is {there})")
    return [*(file for file in TEXT_FILES if file in names), weights]


def _fetch(name: str, repository: str, revision: str, file: RepoSibling) -> Path:
    """Download one file, and compare it with the checksum that the hub lists."""
    import huggingface_hub
    from huggingface_hub import errors

    try:
        with _without_warnings():
            path = Path(huggingface_hub.hf_hub_download(repository, file.rfilename, revision=revision))
        expected, found = _checksums(path, file)
    except errors.EntryNotFoundError as error:
        if isinstance(error, errors.LocalEntryNotFoundError):
            raise _broken_off(name, file, error) from None
        raise CheckpointError(f"{name}: the hub lists {file.rfilename} and lacks it; try another revision") from None
    except Exception as error:  # a connection that broke off, a full disk: each version has other types for it
        raise _broken_off(name, file, error) from None
    if expected != found:
        path.resolve().unlink()
        path.unlink(missing_ok=True)
        raise CheckpointError(
            f"{name}: {file.rfilename} arrived damaged (its checksum is {found[:12]}…, the hub's {expected[:12]}…) and "
            f"was removed; run the same command again"
        )
    return path


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Suppress huggingface_hub's warnings; our errors include what matters of them."""
    log = logging.getLogger("huggingface_hub")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(before)


def _broken_off(name: str, file: RepoSibling, error: Exception) -> CheckpointError:
    if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EROFS, errno.ENOSPC, errno.EDQUOT):
        place = error.filename or "the folder for downloads"
        return CheckpointError(f"{place} cannot be written: {reason_of(error)}; set HF_HOME to a folder that can be")
    reason = " ".join(str(error).split()) or type(error).__name__
    return CheckpointError(
        f"{name}: the download of {file.rfilename} broke off ({reason[:200]}); run the same command again"
    )


def _checksums(path: Path, file: RepoSibling) -> tuple[str, str]:
    """The hub's checksum of a file, and ours: sha256 for large files, git's own for small ones."""
    if file.lfs is not None:
        return file.lfs.sha256, sha256_of([path])
    if file.blob_id is None:
        return "", ""
    data = path.read_bytes()
    return file.blob_id, hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _require_room(name: str, repository: str, commit: str, files: list[RepoSibling]) -> None:
    """Check that the disk has room for the missing files and for the converted copy."""
    from huggingface_hub import constants, try_to_load_from_cache

    there = [try_to_load_from_cache(repository, file.rfilename, revision=commit) for file in files]
    missing = [file for file, path in zip(files, there, strict=True) if not isinstance(path, str)]
    needs = {
        Path(constants.HF_HUB_CACHE): sum(file.size or 0 for file in missing),
        cache_folder(): sum(file.size or 0 for file in files),
    }
    disks: dict[int, tuple[int, Path]] = {}  # both caches may be on one
    for folder, need in needs.items():
        exists = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
        before, _ = disks.get(exists.stat().st_dev, (0, exists))
        disks[exists.stat().st_dev] = before + need, exists
    for need, exists in disks.values():
        free = shutil.disk_usage(exists).free
        if need > free:
            raise CheckpointError(
                f"{name} takes {need / 1e6:,.0f} MB, downloaded and converted, and {exists} has {free / 1e6:,.0f} MB "
                f"free; make room, or set HF_HOME and DIALOGPT_CACHE to folders elsewhere"
            )
    if missing:
        size = sum(file.size or 0 for file in missing) / 1e6
        logger.warning(
            "%s: downloading %d of its files, %.1f MB, from %s", name, len(missing), size, constants.ENDPOINT
        )


# ---- uploading ----


def push(folder: Path, name: str, *, private: bool = False) -> str:
    """Upload an exported folder to the hub, in one commit.

    Args:
        folder: what an export wrote: transformers' files or a ``model.gguf``, and a model card.
        name: "owner/name"; the repository is made if it is not there.
        private: whether a repository that is made is seen by its owner alone.

    Returns:
        The address of the commit.

    Raises:
        CheckpointError: the folder is no export, huggingface_hub is not installed, or the hub refuses.
    """
    names = {path.name for path in folder.iterdir() if path.is_file()} if folder.is_dir() else set()
    exported = "README.md" in names and bool(names & {*WEIGHT_FILES, "model.gguf"})
    if not exported or ("config.json" in names and "format_version" in read_json(folder / "config.json")):
        raise CheckpointError(
            f"{folder} is no exported checkpoint; make one with: dialogpt convert SOURCE FOLDER --to hf"
        )
    if not _REPOSITORY.fullmatch(name):
        raise CheckpointError(f"{name!r} is no name of a repository on the hub; expected OWNER/NAME")
    try:
        import huggingface_hub
    except ImportError:
        raise CheckpointError(f"uploading takes huggingface_hub: {install_hint('hub')}") from None
    try:
        hub = huggingface_hub.HfApi()
        files = [huggingface_hub.CommitOperationAdd(file, folder / file) for file in sorted(names)]
        with _without_warnings():
            hub.create_repo(name, private=private, exist_ok=True)
            # not upload_folder, which may make several commits of one folder
            commit = hub.create_commit(name, files, commit_message="Upload by dialogpt")
    except Exception as error:  # no network, no right: each version has other types for it
        raise CheckpointError(f"{name} could not be uploaded: {_refusal(error, name)}") from None
    return str(commit.commit_url)


def _refusal(error: Exception, name: str) -> str:
    """Why the hub did not take an upload, and what helps."""
    from huggingface_hub import constants, get_token

    if not hasattr(error, "response") and isinstance(error.__cause__, Exception):
        error = error.__cause__  # of a large file, whose own error only names it
    status = getattr(getattr(error, "response", None), "status_code", None)
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    if constants.HF_HUB_OFFLINE:
        return "the hub is not asked, as HF_HUB_OFFLINE is set; unset it"
    if status == 401 and get_token() is None:
        return "nobody is logged in; log in with: hf auth login"
    if status == 401:
        return "the hub does not know the token; make one with the right to write, and log in with: hf auth login"
    if status == 403:
        owner = name.partition("/")[0]
        return f"the token has no right to write to {owner}; use one that has, or a name of your own ({reason})"
    if status is None:
        return f"the hub ({constants.ENDPOINT}) cannot be reached ({reason}); try again with a network"
    return f"{reason}; check the name, or try again later"


# ---- the cache ----


def cached() -> list[Cached]:
    """What the cache holds, by name; of what a killed process left, the size counts, and there is no revision."""
    entries = []
    for folder in sorted(cache_folder().glob("*--*")):
        refs = {ref.name: _referred(ref) for ref in sorted(folder.glob("refs/[!.]*"))}
        for path in sorted(filter(_is_ours, folder.iterdir())) if folder.is_dir() else ():
            revisions = tuple(unquote(name) for name, entry in refs.items() if entry == path.name)
            size = sum(file.stat().st_size for file in path.iterdir() if file.is_file())
            entries.append(Cached(folder.name.replace("--", "/", 1), revisions, path, size))
    return entries


def _is_ours(path: Path) -> bool:
    """Whether a folder is an entry, or one that was not finished: DIALOGPT_CACHE may hold other things too."""
    if _is_partial(path):
        return True
    if not _ENTRY.fullmatch(path.name):
        return False
    try:
        return "format_version" in read_json(path / "config.json")
    except CheckpointError:
        return False


def clear(name: str | None = None) -> list[Cached]:
    """Remove converted checkpoints from the cache; what huggingface_hub keeps of them stays.

    Args:
        name: "owner/name"; None removes all.

    Returns:
        What was removed.

    Raises:
        CheckpointError: the cache holds none of that name, or they cannot be removed.
    """
    repository, at, _ = (None, "", "") if name is None else name.partition("@")
    if at:
        raise CheckpointError(f"name {repository!r} without a revision: all that is kept of it is removed together")
    entries = [entry for entry in cached() if repository in (None, entry.name)]
    if name is not None and not entries:
        raise CheckpointError(f"the cache holds no {name!r}; dialogpt cache lists what it holds")
    try:
        for folder in {entry.path.parent for entry in entries}:
            with _locked(folder):
                for ref in folder.glob("refs/[!.]*"):
                    if _referred(ref) is not None:
                        ref.unlink()
                with suppress(OSError):
                    (folder / "refs").rmdir()
                for entry in entries:
                    if entry.path.parent == folder and entry.path.exists():  # else somebody else removed it
                        doomed = folder / f".removed.partial-{os.getpid()}-{os.urandom(4).hex()}"
                        entry.path.rename(doomed)  # whole or gone, also if this process is killed
                        shutil.rmtree(doomed)
    except OSError as error:
        raise CheckpointError(f"{error.filename} cannot be removed: {reason_of(error)}") from None
    return entries
