"""The full recipe for SmolLM2's memory, or its recall, on one GPU or several, in legs of at most ten minutes, each going on from the last.

    python benchmarks/train_gpu.py smollm2 --data DIR --parts runs/parts --gpus 1
    python benchmarks/train_gpu.py smollm2 --task seek --data DIR --parts runs/seek-parts --run runs/seek
    python benchmarks/train_gpu.py smollm2 --task retell --data DIR --recall runs/seek/recall --parts runs/retell-parts --run runs/retell
    python benchmarks/train_gpu.py smollm2 --task read --data DIR --recall runs/retell/recall --parts runs/read-parts --run runs/read

One call is one leg: it puts the run folder together from the parts of the last leg, trains, and writes new parts: files under 16 MB and a
manifest with the sha256 of each part and each file, so that a leg may run where nothing but small files comes and goes. Call it again with
the same arguments until it says `finished`; the adapter, or the recall, is then in the run folder (and in the parts).
`--unpack` only puts the folder together.
"""

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from lm2.models.atomic import new_folder

PART_BYTES = 15_000_000
MANIFEST = "manifest.json"
POOLS = "pools"
CHAT = ("--steps", "4000", "--stages", "1:1x4")
FULL = {
    "seek": ("--steps", "4000"),  # a step's texts are as many as ever: two small maps, which are to be told apart among all of them
    "retell": ("--steps", "2000", "--stages", "1:1x64", "--rate", "0.012"),
    "read": ("--steps", "3000", "--stages", "1:1x96", "--rate", "0.00015"),
}
EXACT = ("seek", "retell", "read")  # in float32: a step is many small products, which launches cost more than numbers do


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def pack(folder: Path, parts: Path, finished: bool, limit: int = PART_BYTES) -> None:
    """Write every file of `folder` into a new folder `parts`, none longer than `limit` bytes; what was there before is replaced when all is there.
    Left out: the pools of --task find, gigabytes that a GPU makes again in seconds."""
    made = parts.with_name(f"{parts.name}.new")
    shutil.rmtree(made, ignore_errors=True)
    with new_folder(made) as target:
        files = {}
        for file in sorted(p for p in folder.rglob("*") if p.is_file() and ".partial" not in str(p) and p.parent.name != POOLS):
            pieces, whole = [], hashlib.sha256()
            with open(file, "rb") as f:
                while data := f.read(limit):
                    name = f"part{sum(len(v['parts']) for v in files.values()) + len(pieces):04}"
                    (target / name).write_bytes(data)
                    pieces.append({"name": name, "sha256": sha256(data)})
                    whole.update(data)
            files[file.relative_to(folder).as_posix()] = {"sha256": whole.hexdigest(), "parts": pieces}
        (target / MANIFEST).write_text(json.dumps({"finished": finished, "files": files}, indent=1))
    shutil.rmtree(parts, ignore_errors=True)
    os.replace(made, parts)


def unpack(parts: Path, folder: Path) -> bool:
    """Put `folder` together from parts, every byte checked before anything is replaced; True when the run is finished. Ends with a message."""
    made = parts.with_name(f"{parts.name}.new")
    if not parts.exists() and (made / MANIFEST).exists():  # stopped between the two steps that replace the parts
        os.replace(made, parts)
    try:
        manifest = json.loads((parts / MANIFEST).read_text())
        fresh = folder.with_name(f"{folder.name}.new")
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(parents=True)
        for name, record in manifest["files"].items():
            path = (fresh / name).resolve()
            if not path.is_relative_to(fresh.resolve()):
                sys.exit(f"{parts / MANIFEST}: file {name} is outside of the run folder: the manifest is not of this script")
            path.parent.mkdir(parents=True, exist_ok=True)
            whole = hashlib.sha256()
            with open(path, "wb") as f:
                for part in record["parts"]:
                    data = (parts / Path(part["name"]).name).read_bytes()
                    if sha256(data) != part["sha256"]:
                        sys.exit(
                            f"{parts / part['name']} has sha256 {sha256(data)[:12]}, the manifest {part['sha256'][:12]}: copy it again"
                        )
                    f.write(data)
                    whole.update(data)
            if whole.hexdigest() != record["sha256"]:
                sys.exit(f"{parts}: {name} has sha256 {whole.hexdigest()[:12]}, the manifest {record['sha256'][:12]}: copy the parts again")
    except FileNotFoundError as error:
        sys.exit(f"{error.filename} is not there: copy all parts of the last leg")
    except (KeyError, TypeError, ValueError):
        sys.exit(f"{parts / MANIFEST} is not a manifest of this script: copy it again")
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(fresh, folder)
    return bool(manifest["finished"])


def options(task: str, more: Sequence[str]) -> list[str]:
    """What `lm2 train` is given for a task: the full recipe's options, then `more`, which may say otherwise."""
    half = [] if task in EXACT or "--device" in more else ["--half"]
    return ["--task", task, *FULL.get(task, CHAT), "--seed", "0", *half, *more]


def result(task: str) -> str:
    """The folder, in the run's, that is there when the run is finished."""
    return "recall" if task in EXACT else "adapter"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="smollm2")
    parser.add_argument("--task", choices=("find", "chat", "seek", "retell", "read"), default="chat", help="what is trained [chat]")
    parser.add_argument("--data", type=Path, help="folder of texts (docs/training.md)")
    parser.add_argument("--parts", type=Path, required=True, help="what goes from leg to leg")
    parser.add_argument("--run", type=Path, default=Path("runs/train_gpu"), help="the run folder; put together anew where there are parts")
    parser.add_argument("--minutes", type=float, default=8.0, help="of training in a leg; loading and saving come on top")
    parser.add_argument("--gpus", type=int, default=1)
    parser.add_argument("--unpack", action="store_true", help="put the run folder together and stop")
    known, more = parser.parse_known_args()
    finished = unpack(known.parts, known.run) if known.parts.exists() or known.unpack else False
    if not finished and not known.unpack:
        known.run.mkdir(parents=True, exist_ok=True)
        command = ["-c", "from lm2.cli import main; main()"]
        if known.gpus > 1:
            script = known.run / "lm2_main.py"
            script.write_text("from lm2.cli import main\nmain()\n")
            command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(known.gpus), str(script)]
        data = ["--data", str(known.data)] if known.data else []
        arguments = ["train", known.model, *options(known.task, more), *data, "--out", str(known.run), "--minutes", str(known.minutes)]
        code = subprocess.run([sys.executable, *command, *arguments]).returncode
        if code:
            sys.exit(f"training ended with code {code}: {known.parts} is as the last leg left it")
        finished = (known.run / result(known.task)).exists()
        pack(known.run, known.parts, finished)
    print("finished" if finished else "to be continued: call again with the same arguments", flush=True)


if __name__ == "__main__":
    main()
