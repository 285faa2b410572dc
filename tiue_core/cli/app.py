"""`tiue app`: the page."""

from __future__ import annotations

from dataclasses import replace
from importlib import util
from pathlib import Path
from typing import Annotated

import typer

from .options import AcceptLicense, Base, Debug, Device, Dtype, Engine


def register(app: typer.Typer) -> None:
    app.command("app")(app_command)


def app_command(
    student: Annotated[
        list[str] | None,
        typer.Option(
            show_default="all that are here",
            help="Name, folder, .safetensors file or hub id; may be given many times.",
        ),
    ] = None,
    loras: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder of LoRAs to offer.")
    ] = None,
    train: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Let visitors train LoRAs, which go there."),
    ] = None,
    port: Annotated[int, typer.Option(help="0 takes a free one.")] = 7860,
    host: Annotated[str, typer.Option(help="0.0.0.0 lets other machines in.")] = "127.0.0.1",
    share: Annotated[
        bool, typer.Option("--share", help="A public address, through Gradio's servers.")
    ] = False,
    auth: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME:PASSWORD", help="Ask for it; may be given many times."),
    ] = None,
    queue: Annotated[int, typer.Option(help="More waiting pictures are turned away.")] = 64,
    browser: Annotated[bool, typer.Option("--browser", help="Open the browser.")] = False,
    base: Base = None,
    device: Device = None,
    dtype: Dtype = None,
    optimize: Annotated[
        bool,
        typer.Option(
            "--optimize", help="Measure and warm up each student once, then paint faster."
        ),
    ] = False,
    engine: Engine = "auto",
    static: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Write a page that paints in the browser itself instead."),
    ] = None,
    webgpu: Annotated[
        bool, typer.Option("--webgpu", help="With --static: WebGPU as well, 17 MB more.")
    ] = False,
    accept_license: AcceptLicense = False,
    json: Annotated[bool, typer.Option("--json", help="Print the address as JSON.")] = False,
    debug: Debug = False,
) -> None:
    """Open the page: pictures while you type, prompt lists, comparisons.

    Example: tiue app --student stickers --port 7860
    """
    if static is not None:
        from .static import write_page

        one = (student or ["stickers"])[0]
        write_page(static, one, webgpu=webgpu, accept_license=accept_license, json=json)
        return
    if not 0 <= port < 65536:
        raise typer.BadParameter(f"{port}: give a number from 0 to 65535", param_hint="--port")
    if queue < 1:
        raise typer.BadParameter(f"{queue}: give 1 or more", param_hint="--queue")
    users = [_user(text) for text in auth or []]
    from ..app.state import Limits, ServerConfig, offered
    from ..errors import TiueError
    from ..io.files import check_writable
    from ..io.messages import need_torch
    from ..optimize.engines import check as check_engine
    from .console import ask_license, emit, say

    if util.find_spec("gradio") is None:
        raise TiueError("the page needs Gradio: pip install 'tiue[app]'")
    need_torch()
    limits = Limits(waiting=queue)
    if train is not None:
        check_writable(train)
        # of pictures, not of lists
        limits = replace(limits, upload=16 << 20, body=128 << 20, quota=512 << 20)
        limits = replace(limits, quota_all=4 << 30)
    port = _free_port(host, port)  # before a model is loaded
    config = ServerConfig.of(
        offered(student or [], ask_license(accept_license)),
        loras,
        train=train,
        limits=limits,
        device=device,
        dtype=dtype,
        base=base,
        optimize=optimize,
        engine=check_engine(engine),
    )
    for label in config.students:
        say(f"{label}: {config.license(label)}")
    from ..app.build import build, launch

    page, broker = build(config)
    try:
        _, local, shared = launch(
            page,
            broker,
            server_name=host,
            server_port=port,
            share=share,
            auth=users or None,
            inbrowser=browser,
            prevent_thread_lock=True,
        )
    except OSError:
        broker.close()  # a thread that is still loading when Python ends would bring it down
        raise _taken(port) from None
    address = shared or local
    if json:
        emit({"url": address, "students": list(config.students)})
    else:
        print(f"{address}  (Ctrl-C stops)", flush=True)
    try:
        page.block_thread()
    finally:
        page.close(verbose=False)
        broker.close()


def _user(text: str) -> tuple[str, str]:
    name, colon, password = text.partition(":")
    if not (name and colon and password):
        raise typer.BadParameter("give it as NAME:PASSWORD", param_hint="--auth")
    return name, password


def _free_port(host: str, port: int) -> int:
    import socket

    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            raise _taken(port) from None
        return int(probe.getsockname()[1])


def _taken(port: int) -> Exception:
    from ..errors import TiueError

    return TiueError(f"port {port} is taken: give another --port, or 0 for a free one")
