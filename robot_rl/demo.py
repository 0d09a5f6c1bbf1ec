"""The demo: five stages, each of which leaves its result in the output folder and is skipped, or resumed, when that is there."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from queue import Empty
from typing import Any

from rich.console import Console

from data import RldsWriter, convert, open_dataset
from data.errors import InputError
from data.processes import interrupts_held
from data.store.store import is_store
from policies import load_policy
from policies.checkpoint import latest_checkpoint, read_config
from policies.config import DiffusionConfig
from robot_rl.collect import action_description, plan, record_all
from robot_rl.commands.demo import Demo
from robot_rl.config import CloningConfig, TrainingConfig
from robot_rl.console import console, counting_progress, evaluation_progress, loss_note, progress_bars, write_json
from robot_rl.critic import CriticConfig, load_critic
from robot_rl.demo_report import write_demo_report
from robot_rl.evaluation import local_pool, results_table, run_contests
from robot_rl.evaluation.steering import make_contest, three_arms
from robot_rl.recipes import train_critic, train_policy
from robot_rl.steering import SteeringConfig, steered_spec
from sim import environment_ids

# Half of the demonstrations are clean, a quarter dither, a quarter mostly fail; these are longer, so most transitions are theirs.
QUALITIES = (1.0, 0.5, 1.0, 0.0)
# Far from the demonstrations' seeds, and from those on which settings were chosen.
EVALUATION_SEED = 7_000_000
STEERING = SteeringConfig()


def run_demo(demo: Demo) -> None:
    """Record, convert, train, evaluate, report. Raises InputError for a folder that holds something else."""
    dataset, store = demo.out / "tabletop_mixed", demo.out / "store"
    policy, critic = demo.out / "policy", demo.out / "critic"
    report, results = demo.out / "report.html", demo.out / "results.json"
    _claim(demo)
    if not dataset.is_dir():
        _record(demo, dataset)
    if not is_store(store):
        with counting_progress("reading them back") as progress:
            convert(open_dataset(dataset), store, workers=demo.workers, progress=progress)
    _train_both(demo, store, policy, critic)
    contest = make_contest(policy, critic, "tabletop", demo.episodes, EVALUATION_SEED + demo.seed, three_arms(STEERING))
    with evaluation_progress() as on_block:
        journal = demo.out / "evaluation.journal.jsonl"
        evaluation = run_contests({"": contest}, local_pool(demo.workers), journal=journal, on_block=on_block)[""]
    values = evaluation.to_json()
    Console().print(results_table(values))
    if not report.exists():
        console.print("recording videos and writing the report ...")
        spec = steered_spec(load_policy(policy).action_spec, load_critic(critic).action_spec)
        write_demo_report(
            report,
            contest,
            evaluation,
            spec,
            {"Critic": critic / "metrics.jsonl", "Policy": policy / "metrics.jsonl"},
            STEERING.num_samples,
            demo.workers,
        )
        write_json(results, values)
    Console().print(f"report: {report}\nnumbers: {results}", highlight=False)


def _claim(demo: Demo) -> None:
    """Note the settings in the folder, so that another demo's stages are not taken for this one's."""
    settings = {name: value for name, value in asdict(demo).items() if name not in ("out", "workers")}
    noted = demo.out / "settings.json"
    if not noted.exists():
        if demo.out.is_dir() and any(demo.out.iterdir()):
            raise InputError(f"{demo.out}: exists and holds no demo; choose another --out")
        write_json(noted, settings)
    elif (before := json.loads(noted.read_text())) != settings:
        changed = next(name for name in settings if settings[name] != before.get(name))
        raise InputError(
            f"{demo.out}: holds a demo with {changed} {before.get(changed)}, not {settings[changed]}; choose another --out or remove it"
        )


def _record(demo: Demo, dataset: Path) -> None:
    env_ids = environment_ids("tabletop")
    demonstrations = plan(env_ids, demo.demonstrations, QUALITIES, demo.seed)
    with (
        RldsWriter(dataset, action_description(env_ids[0]), image_format="jpeg") as writer,
        counting_progress("recording demonstrations") as progress,
    ):
        for done, episode in enumerate(record_all(demonstrations, demo.workers), 1):
            writer.add(episode)
            progress(done, len(demonstrations))


def _train_both(demo: Demo, store: Path, policy: Path, critic: Path) -> None:
    """Policy and critic know nothing of each other: they are trained side by side, a process each."""
    if _finished(policy, demo.policy_steps) and _finished(critic, demo.critic_steps):
        return
    context = multiprocessing.get_context("spawn")
    messages: Any = context.Queue()
    jobs = {
        "policy": context.Process(target=_train_policy, args=(demo, store, policy, messages), daemon=True),
        "critic": context.Process(target=_train_critic, args=(demo, store, critic, messages), daemon=True),
    }
    with progress_bars("training the policy", "training the critic") as bars:
        with interrupts_held():
            for process in jobs.values():
                process.start()
        running = set(jobs)
        while running:
            try:
                name, step, steps, note = messages.get(timeout=1)
            except Empty:
                died = [name for name in running if not jobs[name].is_alive() and jobs[name].exitcode]
                if died:
                    raise InputError(
                        f"training the {died[0]} died (exit code {jobs[died[0]].exitcode}); run it again"
                    ) from None
                continue
            if steps == 0:
                for process in jobs.values():
                    process.terminate()
                raise InputError(note)
            bars[f"training the {name}"](step, steps, note)
            if step == steps:
                running.discard(name)
        for process in jobs.values():
            process.join()


def _finished(run: Path, steps: int) -> bool:
    checkpoint = latest_checkpoint(run)
    return checkpoint is not None and int(read_config(checkpoint)["step"]) == steps


def _train_policy(demo: Demo, store: Path, out: Path, messages: Any) -> None:
    settings = TrainingConfig(steps=demo.policy_steps, seed=demo.seed, checkpoint_every=500)
    _guarded(
        "policy", messages, lambda show: train_policy(store, out, DiffusionConfig(), CloningConfig(), settings, show), settings
    )


def _train_critic(demo: Demo, store: Path, out: Path, messages: Any) -> None:
    settings = TrainingConfig(steps=demo.critic_steps, seed=demo.seed, checkpoint_every=500)
    _guarded("critic", messages, lambda show: train_critic(store, out, CriticConfig(), settings, show), settings)


def _guarded(name: str, messages: Any, job: Any, settings: TrainingConfig) -> None:
    """Run a training job in its process, telling the parent of its progress or its failure."""

    def show(step: int, steps: int, row: Mapping[str, float]) -> None:
        if step < steps:
            messages.put((name, step, steps, loss_note(row)))

    try:
        job(show)
        messages.put((name, settings.steps, settings.steps, ""))
    except InputError as error:
        messages.put((name, 0, 0, str(error)))
