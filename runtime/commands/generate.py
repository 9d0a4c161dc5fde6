"""`lm2 generate`: continue a prompt, after any amount of context. The prompt is plain text unless --chat."""

import json
from pathlib import Path
from typing import Any

import click

from .common import (
    adjusted,
    check_settings,
    model_options,
    note,
    open_model,
    sampling_options,
    soft_interrupt,
    stdin_bytes,
    window_options,
    write_out,
)


@click.command("generate", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("model")
@click.argument("stdin", required=False, type=click.Choice(["-"]))
@click.option("--prompt", "-p", default=None, help="The prompt.")
@click.option("--prompt-file", type=click.Path(path_type=Path), default=None, help="Read the prompt from a file; - is stdin.")
@click.option("--context", type=click.Path(path_type=Path), default=None, help="Read this text of any length through the memory first.")
@click.option("--chat", is_flag=True, help="Treat the prompt as a chat message and use the model's chat template.")
@click.option("--system", default=None, help="System prompt (with --chat).")
@click.option("--ignore-eos", is_flag=True, help="Go on past the end-of-text token, up to --max-tokens.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object: text, token ids, counts, times.")
@window_options
@sampling_options
@model_options
def command(
    model: str, stdin: str | None, prompt: str | None, prompt_file: Path | None, context: Path | None, chat: bool, system: str | None,
    ignore_eos: bool, as_json: bool, window: int | None, no_memory: bool, verbose: bool, max_tokens: int, seed: int | None, stop: tuple[str, ...],
    backend: str, device: str, dtype: str, threads: int, **sampling: Any,
) -> None:  # fmt: skip
    """Continue a prompt: --prompt TEXT, --prompt-file FILE, or - for stdin.

    MODEL is a model folder or a name such as smollm2. Text goes to stdout as it is made, everything else to stderr.
    """
    from ..session.reading import check_message, read_message, read_message_file
    from ..session.session import Session

    if system is not None and not chat:
        raise click.UsageError("--system needs --chat: a plain prompt has no system message")
    given = [prompt is not None, prompt_file is not None, stdin is not None]
    if sum(given) != 1:
        raise click.UsageError("give the prompt once: --prompt TEXT, --prompt-file FILE, or - for stdin")
    if stdin or str(prompt_file) == "-":
        text = read_message(stdin_bytes(), "stdin")
    elif prompt_file is not None:
        text = read_message_file(prompt_file)
    else:
        text = check_message(prompt or "", "--prompt")
    check_settings(stop, **sampling)
    loaded = open_model(model, backend, device, dtype, threads, not no_memory)

    def say(line: str) -> None:
        if verbose:
            note(line)

    session = Session(loaded, system, adjusted(loaded.sampling, **sampling), seed, notify=say, window=window)
    if chat:
        session.head()  # refuses a system prompt, the template's own too, that leaves no room, before a context is read
    if session.sampling.temperature > 0 and not as_json:
        click.echo(f"seed {session.seed}", err=True)
    read = 0
    if context is not None:
        from .reading import read_file

        with soft_interrupt() as interrupted:
            read, whole = read_file(session, context, chat, interrupted, show=not as_json)
        if not whole:
            raise click.Abort
    with soft_interrupt() as interrupted:
        pieces = (
            session.stream(text, max_tokens, stop, interrupted)
            if chat
            else session.complete(text, max_tokens, stop, ignore_eos, interrupted)
        )
        for piece in pieces:
            if not as_json:
                write_out(piece)
    reply = session.reply
    assert reply is not None
    if not as_json:
        write_out("\n")
        if reply.finish == "interrupted":
            raise click.Abort
        return
    about = loaded.backend.describe()
    result = {
        "text": reply.text, "tokens": list(reply.tokens), "finish": reply.finish, "prompt_tokens": reply.prompt_tokens, "context_tokens": read,
        "tokens_written": session.at.written, "window_tokens": session.at.filled, "window": session.feeder.size, "state_bytes": about.state_bytes,
        "prefill_seconds": reply.prefill_s, "decode_seconds": reply.decode_s, "seed": session.seed,
        "backend": about.backend, "device": about.device, "dtype": about.dtype, "model": loaded.name, "fingerprint": loaded.fingerprint,
    }  # fmt: skip
    click.echo(json.dumps(result, ensure_ascii=False))
    if reply.finish == "interrupted":
        raise click.Abort
