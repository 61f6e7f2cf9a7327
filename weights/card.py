"""The model card of an exported folder: where the weights come from, what was left out, and how to run them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from dialogpt.weights.checkpoint import Checkpoint, Origin
from dialogpt.weights.formats import CheckpointError, read_text

_LICENCES = {"microsoft/dialogpt": "mit", "microsoft/dialogrpt": "mit", "openai-community/gpt2": "mit", "tiny": "mit"}
_DECLARED = re.compile(r"^license:[ \t]*[\"']?([\w.-]{1,40})[\"']?[ \t]*$", re.MULTILINE)
_HEADER = re.compile(r"\A---\n(.*?)\n---\n", re.DOTALL)

_TEXT = """---
{licence_line}library_name: transformers
pipeline_tag: text-generation
tags: [gpt2, dialogue, dialogpt]
---
# {name}
A GPT-2 that answers in a dialogue, exported by dialogpt.

- **Origin:** {name}
- **Checksum of the original weights (sha256):** {sha256}
- **Licence:** {licence}
- **Left out:** {left_out}

Each turn ends with `{eos_token}`; the chat template does that.

## Use
```python
from transformers import pipeline

bot = pipeline("text-generation", "FOLDER")
print(bot([{{"role": "user", "content": "Hi! How are you?"}}], max_new_tokens=50)[0]["generated_text"][-1]["content"])
```

```sh
vllm serve FOLDER                              # an OpenAI-compatible server
llama-cli -m FOLDER/model.gguf -p "Hi!"        # of an export with --to gguf
dialogpt chat --model FOLDER                   # of an export with --to hf
```
"""


@dataclass(frozen=True)
class Licence:
    """A licence by its name on the hub, and how it is known."""

    name: str | None
    source: str


def licence_of(checkpoint: Checkpoint, origin: Origin) -> Licence:
    """The licence that the source's own card declares, or that of a published checkpoint, where known."""
    folder = checkpoint.path if checkpoint.path.is_dir() else checkpoint.path.parent
    card = folder / "README.md"
    if card.is_file():
        try:
            header = _HEADER.match(read_text(card).replace("\r\n", "\n"))
        except CheckpointError:
            header = None
        if header and (declared := _DECLARED.search(header[1])):
            return Licence(declared[1], "as its own card declares")
    known = next((licence for name, licence in _LICENCES.items() if origin.name.lower().startswith(name)), None)
    return Licence(known, "as its publisher declares" if known else "")


def write_card(folder: Path, checkpoint: Checkpoint) -> None:
    """Write ``README.md`` into an exported folder."""
    origin, vocabulary = checkpoint.origin(), checkpoint.vocabulary
    licence = licence_of(checkpoint, origin)
    name = " ".join(origin.name.split())
    text = _TEXT.format(
        name=name,
        sha256=origin.sha256 or "none: they were trained here",
        licence=f"{licence.name}, {licence.source}" if licence.name else "not known; ask its publisher",
        licence_line=f"license: {licence.name}\n" if licence.name else "",
        left_out="; ".join(f"`{key}` ({why})" for key, why in list(checkpoint.ignored.items())[:20]) or "nothing",
        eos_token="the end token" if vocabulary is None else vocabulary.eos_token,
    )
    (folder / "README.md").write_text(text, encoding="utf-8", newline="\n")
