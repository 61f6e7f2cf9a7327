"""`dialogpt bench`: how fast this machine is, and whether the table of kernels fits it."""

from __future__ import annotations

import argparse
import json
import platform
from dataclasses import asdict
from typing import TYPE_CHECKING

from dialogpt.cli.options import wrong_usage
from dialogpt.cli.output import table
from dialogpt.errors import DONE

if TYPE_CHECKING:
    from dialogpt.model.precision.measure import Timing

SIZES = ("tiny", "small", "medium", "large")


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command and its flags."""
    parser = subparsers.add_parser("bench", help="how fast this machine is")
    parser.add_argument("--kernels", action="store_true", help="time each product of each precision")
    parser.add_argument("--size", choices=SIZES, default="small", help="the shapes of its weights (default: small)")
    parser.add_argument("--threads", type=int, metavar="N", help="of torch (default: one for each core)")
    parser.add_argument("--json", action="store_true", help="one JSON object a precision, for a report")
    parser.set_defaults(run=run, parser=parser)


def run(options: argparse.Namespace) -> int:
    """Time what was asked for, and print it as it comes."""
    if not options.kernels:
        raise wrong_usage(options, "choose what to measure: --kernels")
    if options.threads is not None and options.threads < 1:
        raise wrong_usage(options, f"--threads must be a positive integer, got {options.threads}")
    import torch

    from dialogpt.errors import DialogueError
    from dialogpt.model import PRESETS
    from dialogpt.model.precision.choice import capability
    from dialogpt.model.precision.measure import MANY_ROWS, contradictions, measure_kernels

    if options.threads is not None:
        torch.set_num_threads(options.threads)
    machine = {"processor": processor(), "capability": capability(), "torch": torch.__version__,
               "threads": torch.get_num_threads(), "size": options.size}  # fmt: skip
    print(json.dumps(machine) if options.json else table([(name, str(value)) for name, value in machine.items()]))
    if not options.json:
        print(f"\n{'precision':<20}{'kernel':<20}{'one row':>10}{f'{MANY_ROWS} rows':>12}", flush=True)
    advice: list[str] = []
    try:
        for timings in measure_kernels(PRESETS[options.size]):
            advice += contradictions(timings)
            for timing in timings:
                print(json.dumps(asdict(timing)) if options.json else _line(timing), flush=True)
    except ValueError as error:  # DIALOGPT_KERNELS asks for what cannot be
        raise DialogueError(str(error)) from None
    if not options.json:
        print("\n" + "\n".join(advice or ["No kernel is clearly faster than the one that is used."]))
    return DONE


def _line(timing: Timing) -> str:
    columns = f"{timing.precision:<20}{timing.kernel:<20}"
    if timing.one_row_ms is None or timing.many_rows_ms is None:
        return f"{columns}  does not run here"
    return f"{columns}{timing.one_row_ms:7.2f} ms{timing.many_rows_ms:9.1f} ms{'  used' if timing.chosen else ''}"


def processor() -> str:
    """The processor's name and those of its instructions that kernels depend on."""
    import torch

    found: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()  # torch 2.6 has no such function
    names = ("avx2", "avx_vnni", "avx512_f", "avx512_vnni", "avx512_bf16", "amx_tile", "asimd", "bf16", "i8mm", "sve")
    features = [name for name in names if found.get(name)]
    return " ".join([str(found.get("cpu_name") or platform.processor() or platform.machine()), *features])
