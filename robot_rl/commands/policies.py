"""`robot-rl policies`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Policies:
    """List the families of policies: what each can do, and the options of its spec `family:path?option=value`.

    Every family has the option `map` too, which says what a foreign policy's actions mean.
    """

    json: Path | None = None  # where to write the list

    def run(self) -> None:
        from rich.console import Console
        from rich.table import Table

        from policies import FAMILIES, abilities
        from policies.loading import family_class, family_options
        from robot_rl.console import check_writable, write_json

        check_writable(self.json)
        table = Table("family", "what it is", "can", "options of its spec", title="policies", show_lines=True)
        rows = []
        for family in FAMILIES:
            policy_class = family_class(family)
            what = " ".join((policy_class.__doc__ or "").split("\n\n")[0].split())
            able, options = [*abilities(policy_class)], [*family_options(policy_class)]
            trains = hasattr(policy_class, "config_type")
            rows.append({"family": family, "what": what, "abilities": able, "trainable": trains, "options": options})
            table.add_row(family, what, ", ".join(able + ["train here"] * trains), " ".join(options))
        Console().print(table)
        if self.json:
            write_json(self.json, {"families": rows})
