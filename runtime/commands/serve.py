"""`lm2 serve`: a model over HTTP. Knows the options; runtime/serve is the server."""

import importlib.util
from pathlib import Path
from typing import Any

import click

from ...models.errors import BackendError, PromptError
from .common import model_options, need_folder, note, open_model

NEEDS = ("starlette", "uvicorn", "prometheus_client")


@click.command("serve", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("model", required=False)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; others than this machine's need an API key.")
@click.option("--port", type=click.IntRange(0, 65535), default=8080, show_default=True, help="0 takes a free one, and says which.")
@click.option("--api-key", "api_keys", multiple=True, metavar="KEY", help="Let in who has this key; may be given several times. Each key is an owner of its own.")
@click.option("--api-key-file", type=click.Path(path_type=Path), default=None, help="API keys, one a line.")
@click.option("--store", type=click.Path(path_type=Path, file_okay=False), default=None, help="Keep sessions in this folder: they outlive the server.")
@click.option("--shared", is_flag=True, help="Other servers, started so too, may have the --store: each session is one server's at a time.")
@click.option("--ray", "replicas", type=click.IntRange(1), default=None, help="So many replicas on Ray Serve, which share the --store.")
@click.option("--store-bytes", type=click.IntRange(0), default=10 << 30, show_default=True, help="Of responses and chats nobody named, in the store.")
@click.option("--session-bytes", type=click.IntRange(1 << 20), default=1 << 30, show_default=True, help="Of sessions in memory.")
@click.option("--max-sessions", type=click.IntRange(0), default=256, show_default=True, help="Named sessions and conversations.")
@click.option("--max-tokens", type=click.IntRange(1), default=2048, show_default=True, help="Longest answer, also where a request does not say.")
@click.option("--max-queue", type=click.IntRange(1), default=64, show_default=True, help="Requests that may wait; the next is told to come again.")
@click.option("--max-running", type=click.IntRange(1), default=8, show_default=True, help="Requests that are answered at a time.")
@click.option("--max-body", type=click.IntRange(1024), default=4 << 20, show_default=True, help="Bytes of a request.")
@click.option("--window", type=int, default=None, help="Tokens kept word for word; default: the model's (2048 where its positions allow).")
@click.option("--no-memory", is_flag=True, help="The backbone alone: what leaves the window is gone.")
@model_options
def command(
    model: str | None, host: str, port: int, api_keys: tuple[str, ...], api_key_file: Path | None, store: Path | None, shared: bool, replicas: int | None, store_bytes: int, session_bytes: int,
    max_sessions: int, max_tokens: int, max_queue: int, max_running: int, max_body: int, window: int | None, no_memory: bool, backend: str, device: str, dtype: str, threads: int,
) -> int:  # fmt: skip
    """Serve MODEL to OpenAI's clients, with sessions that remember. See docs/serving.md.

    Ctrl-C or SIGTERM ends it: answers under way stop at a whole turn, and with --store everything is kept.
    """
    missing = [name for name in NEEDS if importlib.util.find_spec(name) is None]
    if missing:
        raise BackendError(f"the server needs {' and '.join(missing).replace('_', '-')}: pip install 'lm2[serve]'")
    from ..serve.owners import check_key

    if replicas is not None:
        if store is None:
            raise PromptError("--ray needs a folder that the replicas share: give --store")
        need_folder(store)
        _on_ray(
            host, port, model=_place(model), store=str(store.absolute()), replicas=replicas, api_keys=" ".join(check_key(k, "--api-key") for k in api_keys),
            api_key_file="" if api_key_file is None else str(api_key_file.absolute()), backend=backend, device=device, dtype=dtype, threads=threads,
            memory=not no_memory, window=window or 0, store_bytes=store_bytes, session_bytes=session_bytes, max_sessions=max_sessions, max_tokens=max_tokens,
            max_queue=max_queue, max_running=max_running, max_body=max_body, gpus=1 if device.startswith(("cuda", "gpu")) else 0,
        )  # fmt: skip
        return 0
    from ..serve.limits import Limits
    from ..serve.owners import Owners, read_keys
    from ..serve.server import serve
    from ..serve.store import Store

    keys = [check_key(key, "--api-key") for key in api_keys]
    if api_key_file is not None:
        keys += read_keys(api_key_file)
    kept = None
    if store is not None:
        need_folder(store)
        kept = Store(store, store_bytes, shared)
    elif shared:
        raise PromptError("--shared needs a folder that the servers share: give --store")
    try:
        limits = Limits(max_body, max_tokens, max_queue, max_running, max_sessions, session_bytes)
        serve(lambda: open_model(model, backend, device, dtype, threads, not no_memory), host, port, Owners(keys), limits, kept, window, note)
    finally:
        if kept is not None:
            kept.close()
    return 0


def _on_ray(host: str, port: int, **settings: Any) -> None:
    """Serve on Ray. Raises PromptError for a host that others can reach without an API key; BackendError where Ray is missing."""
    if importlib.util.find_spec("ray") is None:
        raise BackendError("--ray needs ray: pip install 'lm2[ray]'")
    from ..serve.fleet import Settings, run
    from ..serve.guard import is_loopback

    made = Settings.of(settings)
    if not is_loopback(host) and not made.owners.closed:
        raise PromptError(f"--host {host} can be reached by others: give --api-key or --api-key-file, or leave --host out")
    run(made, host, port, note)


def _place(model: str | None) -> str:
    """The model as replicas find it, whose working folder is another."""
    from ...models.checkpoints.catalog import is_name
    from ..loading import DEFAULT_MODEL

    return DEFAULT_MODEL if model is None else model if is_name(model) else str(Path(model).absolute())
