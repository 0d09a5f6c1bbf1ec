"""`robot-rl ...`: parses the command line into one dataclass of `robot_rl.commands`, runs it, and turns mistakes into one line.

Only standard-library, tyro and config modules are imported before a command runs, so that `--help` answers at once.
"""

from __future__ import annotations

import errno
import os
import sys
from dataclasses import dataclass
from typing import Annotated, Any

import tyro

from data.errors import InputError
from robot_rl.commands.bench import BenchSim, BenchSteering
from robot_rl.commands.data import DataConvert, DataInspect
from robot_rl.commands.demo import Demo
from robot_rl.commands.evaluate import Evaluate
from robot_rl.commands.train import TrainCritic, TrainPolicy


@dataclass(frozen=True)
class Data:
    """Look at datasets and convert them for training."""

    command: Annotated[DataInspect, tyro.conf.subcommand("inspect")] | Annotated[DataConvert, tyro.conf.subcommand("convert")]


@dataclass(frozen=True)
class Train:
    """Train a critic or a policy on a converted dataset."""

    command: Annotated[TrainCritic, tyro.conf.subcommand("critic")] | Annotated[TrainPolicy, tyro.conf.subcommand("policy")]


@dataclass(frozen=True)
class Bench:
    """Measure speed on this machine."""

    command: Annotated[BenchSim, tyro.conf.subcommand("sim")] | Annotated[BenchSteering, tyro.conf.subcommand("steering")]


Command = (
    Annotated[Demo, tyro.conf.subcommand("demo")]
    | Annotated[Data, tyro.conf.subcommand("data")]
    | Annotated[Train, tyro.conf.subcommand("train")]
    | Annotated[Evaluate, tyro.conf.subcommand("evaluate")]
    | Annotated[Bench, tyro.conf.subcommand("bench")]
)


def main(arguments: list[str] | None = None) -> int:
    """Exit code: 0 done, 2 a mistake of the user's (one line on stderr), 130 interrupted."""
    # Before torch is imported: threads that spin while they wait cost 10x on a machine that is busy otherwise.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        command: Any = tyro.cli(
            Command,
            prog="robot-rl",
            args=arguments,
            description="A Q-function re-ranks and locally improves the actions of any robot policy.",
            config=(tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes),
        )
        while hasattr(command, "command"):
            command = command.command
        command.run()
    except InputError as error:
        return _fail(str(error))
    except OSError as error:
        if error.filename is None and error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise  # not about a file of the user's
        return _fail(
            f"{error.filename or 'disk'}: {error.strerror}; nothing that was complete is lost, make room or choose another path"
        )
    except KeyboardInterrupt:
        print("stopped; the same command resumes", file=sys.stderr)
        return 130
    return 0


def _fail(message: str) -> int:
    print("robot-rl: " + " ".join(message.split()), file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
