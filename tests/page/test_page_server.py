"""The server as other programs meet it, friendly and not: `pytest -m slow tests/page`."""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from served import ROOT, served, tiue

pytestmark = pytest.mark.slow
PROMPT = "a cat on a blue background"
SECRET = "not for visitors"
JSON = {"content-type": "application/json"}


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A page with two students and a short queue, run where there is a file to steal. PyTorch
    paints, as in ``conftest.server``."""
    students = ("--student", "stickers", "--student", "stickers-teacher")
    with served(*students, "--queue", "12", "--engine", "torch") as (url, _):
        yield url


@pytest.fixture
def http(two: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=two, trust_env=False, timeout=120) as client:
        yield client


def call(client: httpx.Client, name: str, *data: Any) -> list[Any]:
    """All answers of an endpoint; an error is a `RuntimeError` with its message."""
    body = json.dumps({"data": list(data)})  # ASCII, half a surrogate pair included
    answer = client.post(f"/gradio_api/call/{name}", content=body, headers=JSON)
    if answer.status_code != 200:
        raise RuntimeError(f"{answer.status_code} {answer.text}")
    answers: list[Any] = []
    event = answer.json()["event_id"]
    with client.stream("GET", f"/gradio_api/call/{name}/{event}") as stream:
        kind = ""
        for line in stream.iter_lines():
            if line.startswith("event: "):
                kind = line[7:]
            elif line.startswith("data: ") and kind in ("complete", "generating"):
                answers += [json.loads(line[6:])]
            elif line.startswith("data: ") and kind == "error":
                raise RuntimeError(line[6:])
    return answers


def generate(client: httpx.Client, prompt: Any, seed: Any = 0, *more: Any) -> dict[str, Any]:
    defaults = [0, 0, "exact", "", "", 1.0]
    return call(client, "generate", prompt, seed, *more, *defaults[len(more) :])[-1][0]


def png(answer: dict[str, Any]) -> bytes:
    return base64.b64decode(answer["image"].partition(",")[2])


def test_generate_and_batch_through_the_client(two: str, tmp_path: Path) -> None:
    from gradio_client import Client

    client = Client(two, verbose=False)
    answer = client.predict(PROMPT, 3, api_name="/generate")
    ended = tiue(
        "generate", PROMPT, "--seed", "3", "--engine", "torch", "--out", str(tmp_path), "--json"
    )
    (file,) = json.loads(ended.stdout)["images"]
    assert png(answer) == Path(file["path"]).read_bytes()
    job = client.submit("prompt,seed\na cat,1\na boat,many\n", api_name="/batch")
    last = job.result(timeout=120)
    assert last == {"made": 1, "failed": 0, "bad_rows": 1}
    kinds = [sorted(answer) for answer in job.outputs()]
    assert ["column", "error", "line"] in kinds
    assert ["file", "image", "line", "prompt", "seed"] in kinds
    names = [student["name"] for student in client.predict(api_name="/students")]
    assert names == ["stickers", "stickers-teacher"]


def test_the_example_client_of_the_docs(two: str, tmp_path: Path) -> None:
    import subprocess
    import sys

    from served import environment

    text = (ROOT / "docs" / "page.md").read_text()
    code = text.partition("```python\n")[2].partition("```")[0]
    code = code.replace("http://127.0.0.1:7860", two)
    subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment(), check=True, timeout=200
    )
    assert len(list(tmp_path.glob("*.png"))) == 3


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (["x" * 1_000_000], "1000000 characters"),
        ([None], "give a text"),
        ([["a"]], "give a text"),
        ([PROMPT, -1], "whole number"),
        ([PROMPT, "NaN"], "whole number"),
        ([PROMPT, 0, 1 << 20], "whole number"),
        ([PROMPT, 0, 100_000], "whole number"),
        ([PROMPT, 0, 4096, 4096], "multiple of 8 up to 256"),
        ([PROMPT, 0, 129], "multiple of 8"),
        ([PROMPT, 0, 0, 0, "all"], "exact or fast"),
        ([PROMPT, 0, 0, 0, "draft"], "draft decoder"),
        ([PROMPT, 0, 0, 0, "exact", "loopfree-sd1.5"], "no student"),
        ([PROMPT, 0, 0, 0, "exact", "/etc/passwd"], "no student"),
        ([PROMPT, 0, 0, 0, "exact", "", "../../etc/passwd"], "no LoRA"),
        ([PROMPT, 0, 0, 0, "exact", "", "", 1e9], "give a number"),
    ],
)
def test_what_a_program_may_not_ask_for(http: httpx.Client, data: Any, message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        generate(http, *data)


def test_lists_that_ask_for_too_much(http: httpx.Client) -> None:
    for rows, kind, message in (
        ("prompt,count\na cat,100000\n", "csv", "more than 500 pictures"),
        ("{a|b} " * 300, "txt", "no good row|too many braces|0"),
        ("a cat", "exe", "a list is one of"),
        ("x" * 2_000_000, "txt", "characters"),
        ("- &a [x]\n- *a", "yaml", ""),
    ):
        if message in ("", "no good row|too many braces|0"):
            assert call(http, "batch", rows, kind, "")[-1][0]["made"] == 0
            continue
        with pytest.raises(RuntimeError, match=message):
            call(http, "batch", rows, kind, "")


def test_students_switched_by_many_at_once(two: str) -> None:
    """Every answer is that student's picture of that seed, whoever else asks for another."""
    alone: dict[tuple[str, int], bytes] = {}
    with httpx.Client(base_url=two, trust_env=False, timeout=300) as client:
        for student in ("stickers", "stickers-teacher"):
            for seed in range(2):
                answer = generate(client, PROMPT, seed, 0, 0, "exact", student)
                alone[student, seed] = png(answer)
    assert len(set(alone.values())) == 4
    wrong: list[Any] = []

    def visitor(number: int) -> None:
        with httpx.Client(base_url=two, trust_env=False, timeout=300) as client:
            for turn in range(3):
                student = ("stickers", "stickers-teacher")[(number + turn) % 2]
                seed = (number // 2) % 2
                answer = generate(client, PROMPT, seed, 0, 0, "exact", student)
                if png(answer) != alone[student, seed] or answer["student"] != student:
                    wrong.append((number, turn))

    threads = [threading.Thread(target=visitor, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_client_that_leaves_frees_its_place(two: str) -> None:
    """Twelve fit into the queue. Those who go leave room at once, not when they would have been
    painted."""
    clients = [httpx.Client(base_url=two, trust_env=False, timeout=120) for _ in range(13)]
    streams = []
    for client in clients:
        data = {"data": [PROMPT, 5, 256, 256, "exact", "stickers-teacher", "", 1.0]}
        event = client.post("/gradio_api/call/generate", json=data).json()["event_id"]
        request = client.build_request("GET", f"/gradio_api/call/generate/{event}")
        streams.append(client.send(request, stream=True))
    with httpx.Client(base_url=two, trust_env=False, timeout=120) as late:
        began = time.monotonic()
        for stream, client in zip(streams, clients, strict=True):
            stream.close()
            client.close()
        time.sleep(0.5)
        generate(late, PROMPT)
        waited = time.monotonic() - began
        began = time.monotonic()
        generate(late, PROMPT, 5, 256, 256, "exact", "stickers-teacher")
        one = time.monotonic() - began
    assert waited < 6 * one, f"{waited:.1f} s behind those who left; one takes {one:.1f} s"


def test_a_full_queue_says_so(two: str) -> None:
    clients = [httpx.Client(base_url=two, trust_env=False, timeout=300) for _ in range(24)]
    said: list[str] = []

    def ask(client: httpx.Client) -> None:
        try:
            generate(client, PROMPT, 5, 256, 256, "exact", "stickers")
            said.append("painted")
        except RuntimeError as error:
            said.append(str(error))

    threads = [threading.Thread(target=ask, args=(client,)) for client in clients]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    refused = [text for text in said if text != "painted"]
    assert len(said) == 24 and 0 < len(refused) <= 24 - 12
    assert all("too many are waiting" in text for text in refused)


TRAVERSALS = [
    "/gradio_api/file={path}",
    "/gradio_api/file=/{path}",
    "/gradio_api/file=%2e%2e%2f%2e%2e%2f%2e%2e%2f%2e%2e%2f{path}",
    "/gradio_api/file=..%2f..%2f..%2f..%2f..%2f{path}",
    "/gradio_api/file=..%5c..%5c..%5c{path}",
    "/gradio_api/file=file://{path}",
    "/gradio_api/file=http://127.0.0.1:1/{path}",
    "/gradio_api/file/{path}",
    "/file={path}",
    "/file/{path}",
    "/static/../../../../../../..{path}",
    "/static/%2e%2e/%2e%2e/%2e%2e/%2e%2e/%2e%2e/%2e%2e/%2e%2e{path}",
    "/static/..%2f..%2f..%2f..%2f..%2f..%2f..%2f..%2f{path}",
    "/assets/..%2f..%2f..%2f..%2f..%2f..%2f..%2f..%2f{path}",
    "/svelte/..%2f..%2f..%2f..%2f..%2f..%2f..%2f..%2f{path}",
    "/assets//{path}",
    "/static//{path}",
    "/gradio_api/custom_component/x/client/component/..%2f..%2f..%2f..{path}",
    "/custom_component/x/..%2f..{path}",
    "/gradio_api/proxy=file://{path}",
    "/gradio_api/proxy=http://127.0.0.1:1/{path}",
    "/gradio_api/stream/x/y/z/..%2f..%2f{path}.ts",
    "/pwa_icon/..%2f..%2f{path}",
    "/theme.css/..%2f..{path}",
    "/gradio_api/file={path}%00.png",
    "/gradio_api/file=C:{path}",
    "/gradio_api/file=//localhost{path}",
]


def test_no_file_outside_its_folder_is_readable(http: httpx.Client, tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_text(SECRET)
    inside = [ROOT / "pyproject.toml", ROOT / "app.py", ROOT / ".git", ROOT / "README.md"]
    targets = [tmp_path / "secret.txt", Path("/etc/passwd"), Path("/proc/self/environ"), *inside]
    for target in targets:
        for pattern in TRAVERSALS:
            url = httpx.URL(str(http.base_url).rstrip("/") + pattern.format(path=target))
            answer = http.send(httpx.Request("GET", url))
            text = answer.text
            assert SECRET not in text and "root:" not in text and "[project]" not in text, url
            assert "PATH=" not in text and "gitdir" not in text, url
            assert answer.status_code >= 400, f"{url} {answer.status_code}"


def test_a_path_instead_of_an_upload(http: httpx.Client, tmp_path: Path) -> None:
    """A file is named in the request as if it had been uploaded; none of it comes back."""
    stolen = tmp_path / "stolen.csv"
    stolen.write_text(f"prompt\n{SECRET}\n")
    config = http.get("/config").json()
    readers = [d for d in config["dependencies"] if d["targets"] and d["targets"][0][1] == "upload"]
    assert readers
    for path in (str(stolen), "/etc/passwd", "../../etc/passwd", str(ROOT / "pyproject.toml")):
        for kind in ({"_type": "gradio.FileData"}, {}):
            data = {"path": path, "orig_name": "a.csv", "meta": kind}
            body = {"data": [data], "fn_index": readers[0]["id"], "session_hash": "thief"}
            joined = http.post("/gradio_api/queue/join", json=body)
            if joined.status_code != 200:
                continue
            text = ""
            with http.stream("GET", "/gradio_api/queue/data?session_hash=thief") as stream:
                for line in stream.iter_lines():
                    text += line
                    if "process_completed" in line or "close_stream" in line:
                        break
            assert '"success":false' in text.replace(" ", ""), path
            assert SECRET not in text and "root:" not in text and "[project]" not in text


def test_uploads_that_are_too_large_and_names_that_climb(http: httpx.Client) -> None:
    big = http.post("/gradio_api/upload", files={"files": ("a.csv", b"0" * (3 << 20))})
    assert big.status_code == 413

    def endless() -> Iterator[bytes]:
        for _ in range(200):
            yield b"0" * (1 << 20)

    try:
        answer = http.post("/gradio_api/queue/join", content=endless())
        assert answer.status_code == 413
    except httpx.WriteError:  # it hung up on us
        pass
    for name in ("../../../../tmp/climbed.csv", "/tmp/climbed.csv", "..\\climbed.csv"):
        answer = http.post("/gradio_api/upload", files={"files": (name, b"prompt\na cat\n")})
        assert answer.status_code in (200, 400)
        if answer.status_code == 200:
            (path,) = answer.json()
            assert ".." not in Path(path).parts and Path(path).parent.parent.name.startswith("tiue")
    assert not Path("/tmp/climbed.csv").exists()


def test_auth() -> None:
    with (
        served("--auth", "ann:secret") as (url, _),
        httpx.Client(base_url=url, trust_env=False, timeout=60) as client,
    ):
        closed = ["/config", "/gradio_api/info", "/gradio_api/queue/data?session_hash=x"]
        assert [client.get(path).status_code for path in closed] == [401] * 3
        body = {"data": [PROMPT, 0, 0, 0, "exact", "", "", 1.0]}
        assert client.post("/gradio_api/call/generate", json=body).status_code == 401
        wrong = client.post("/login", data={"username": "ann", "password": "guess"})
        assert wrong.status_code == 400
        assert client.post("/login", data={"username": "ann", "password": "secret"}).is_success
        assert png(generate(client, PROMPT)).startswith(b"\x89PNG")
