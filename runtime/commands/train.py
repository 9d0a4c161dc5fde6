"""`lm2 train`: reads the options, runs the job, writes the result. Knows no recipe (models/training/jobs.py) and no model."""

import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .convert import parse_layers

if TYPE_CHECKING:
    from ...models.layout import ModelFolder


@click.command("train")
@click.argument("model")
@click.option("--task", type=click.Choice(["recall", "distance", "babilong", "find", "chat", "seek", "retell", "read", "text"]), required=True, help="What is learned.")
@click.option(
    "--data", type=click.Path(exists=True, file_okay=False, path_type=Path), help="Folder with babi/, background/, chat/, tinystories/."
)
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), required=True, help="Checkpoints, curves and the result.")
@click.option("--steps", type=click.IntRange(1), help="Steps of the whole run.")
@click.option("--until", type=click.IntRange(1), help="Stop at this step, to go on later with the same command.")
@click.option("--minutes", type=click.FloatRange(0, min_open=True), help="Stop after about so long, to go on later with the same command.")
@click.option("--rate", type=click.FloatRange(0, min_open=True), help="AdamW's peak learning rate.")
@click.option("--stages", help="Chunks and streams: 0.5:1-4x8,1:2-8x6 is 1 to 4 chunks, 8 streams for half of the run, then 2 to 8, 6.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option(
    "--memory-layers",
    default="auto",
    show_default=True,
    callback=parse_layers,
    help="--task find and chat: layers that get a memory [those of --adapter, or 15,18,21 of 30].",
)
@click.option("--memory-chunk", type=click.IntRange(16), default=512, show_default=True, help="--task find and chat: tokens per chunk.")
@click.option(
    "--memory-blocks", type=click.IntRange(1), default=4, show_default=True, help="--task find and chat: chunks until a row is written again."
)
@click.option(
    "--adapter",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="--task find and chat: begin from this memory, in the layers that it has.",
)
@click.option(
    "--recall",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="--task retell, read: the recall that --task seek wrote, or a trained one to go on with.",
)
@click.option(
    "--encoder",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="--task seek: a BERT's folder (a small encoder of sentences) that looks again at what the finder likes; written with the recall, in 8 bits.",
)
@click.option(
    "--memory", type=click.Choice(["lm2", "rmt", "none"]),
    help="--task babilong: train for a comparison, from answers alone: LM2, RMT, or a Llama with its window (docs/babilong.md).",
)  # fmt: skip
@click.option("--only", default="", metavar="A,B", help="--memory: bAbI's tasks [all of qa1 to qa10 that DATA has].")
@click.option("--all-parameters", is_flag=True, help="--task text: train the backbone too.")
@click.option("--recompute", is_flag=True, help="Keep no activations of chunks (chat: of MLPs): less memory, a third more work.")
@click.option("--half", is_flag=True, help="Matrix products in bfloat16.")
@click.option("--device", default="auto", show_default=True, help="cpu, cuda, cuda:1.")
@click.option("--threads", type=click.IntRange(1), help="CPU threads [all].")
def command(
    model: str,
    task: str,
    data: Path | None,
    out: Path,
    steps: int | None,
    until: int | None,
    minutes: float | None,
    rate: float | None,
    stages: str | None,
    seed: int,
    memory_layers: tuple[int, ...] | None,
    memory_chunk: int,
    memory_blocks: int,
    adapter: Path | None,
    recall: Path | None,
    encoder: Path | None,
    memory: str | None,
    only: str,
    all_parameters: bool,
    recompute: bool,
    half: bool,
    device: str,
    threads: int | None,
) -> None:
    """Train a memory, or a small model with one.

    MODEL is `tiny` (recall, babilong: lm2-tiny or lm2-babi from scratch) or a model folder or name (distance: lm2-tiny, on to 32 chunks;
    babilong: lm2-babi, trained on; find: where a memory for it looks; chat: all of it; both written as an adapter; seek, then retell, then read: a recall; text: next-token prediction through the memory). Checkpoints are written every 250 steps; the same command goes on
    from the last one. Several GPUs: torchrun --nproc-per-node N $(which lm2) train ...
    """
    from ..backend import installed

    if not installed("torch"):
        from ...models.errors import BackendError

        raise BackendError("training needs PyTorch, which is not installed: pip install 'lm2[torch]'")
    import torch

    from ...models.atomic import check_file, check_folder
    from ...models.training import compare, jobs, recall_jobs, together
    from ...models.training import run as loop
    from ...models.training.plan import TrainError
    from ...models.training.plan import stages as read_stages

    if encoder is not None and task != "seek":
        raise TrainError(f"--encoder is for --task seek, not {task}: what seek wrote carries it on")
    out = check_folder(out)
    check_file(out / loop.STATE)
    plan = jobs.PLANS[task]
    plan = replace(
        plan, seed=seed, steps=steps or plan.steps, rate=rate or plan.rate, stages=read_stages(stages) if stages else plan.stages
    )
    device = together.own_device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
    loop.threads(threads)
    say = click.echo if together.rank() == 0 else (lambda text: None)
    if (model == "tiny") != (task == "recall") and task != "babilong":
        raise TrainError(f"--task {task} trains {'tiny' if model != 'tiny' else 'a model folder'}, not {model}")
    if memory and (model, task) != ("tiny", "babilong"):
        raise TrainError(f"--memory {memory} is for `lm2 train tiny --task babilong`, not {model} with --task {task}")
    if only and not memory:
        raise TrainError(f"--only {only} needs --memory: without it --task babilong trains qa1 to qa5")
    fresh, options = not (out / loop.STATE).exists(), ""
    with together.joined(device):
        if memory:
            options = f" --memory {memory}" + (f" --only {only}" if only else "")
            job = compare.job(plan, memory, [t.strip() for t in only.split(",") if t.strip()], data, out, device, say)
        elif task == "babilong":
            job = jobs.babilong(plan, data, out, device, None if model == "tiny" else _open(model), say)
        elif model == "tiny":
            job = jobs.tiny(plan, data, out, device, recompute, None, say)
        else:
            folder = _open(model)
            if task == "distance":
                job = jobs.tiny(plan, data, out, device, recompute, folder, say)
            elif task in ("find", "chat"):
                named = f" --memory-layers {','.join(map(str, memory_layers))}" if memory_layers else ""
                options = f"{named} --memory-chunk {memory_chunk} --memory-blocks {memory_blocks}"
                job = jobs.chat(plan, folder, data, memory_layers, memory_chunk, memory_blocks, device, recompute, half, fresh, adapter, out, say)
            elif task in ("seek", "retell", "read"):
                job = recall_jobs.job(plan, folder, data, device, recall, encoder, say)
            elif data is None:
                raise TrainError("--task text needs --data")
            else:
                job = jobs.text(plan, folder, data, all_parameters, device, recompute, half, say)
        done = loop.run(job.task, plan, out, half, say, until, 60 * minutes if minutes else math.inf, job.origin)
    if done and together.rank() == 0:
        target = out / job.result
        if target.exists() and not (target.is_dir() and not any(target.iterdir())):
            say(f"{target} is there already, and is left as it is")
            return
        job.write(target, jobs.record(plan, model, options + (" --half" if half else "") + (" --adapter FIRST" if adapter else "") + (" --recall FIRST" if recall else "") + (" --encoder BERT" if encoder else "")))
        say(f"written to {target}")


def _open(model: str) -> "ModelFolder":
    from ...models.layout import open_folder
    from ..loading import find_model

    return open_folder(find_model(model))
