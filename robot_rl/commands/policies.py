"""`robot-rl policies`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Policies:
    """List the families of policies: what each can do, and the options of its spec `family:path?option=value`."""

    json: Path | None = None  # where to write the list

    def run(self) -> None:
        from rich.console import Console
        from rich.table import Table

        from policies import ABILITIES, FAMILIES, abilities
        from policies.loading import family_class, family_options
        from robot_rl.console import check_writable, write_json

        check_writable(self.json)
        table = Table("family", "what it is", *ABILITIES, "train here", "options", title="policies")
        rows = []
        for family in FAMILIES:
            policy_class = family_class(family)
            able, options = abilities(policy_class), [*family_options(policy_class)]
            trains = hasattr(policy_class, "config_type")
            what = (policy_class.__doc__ or "").strip().splitlines()[0]
            rows.append({"family": family, "what": what, "abilities": [*able], "trainable": trains, "options": options})
            marks = ["yes" if name in able else "" for name in ABILITIES]
            table.add_row(family, what, *marks, "yes" if trains else "", " ".join(options))
        Console().print(table)
        if self.json:
            write_json(self.json, {"families": rows})
