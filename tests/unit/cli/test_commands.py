"""The commands as a person or a program meets them: results, JSON, errors, exit codes, documentation."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import threading
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import click
import msgspec
import pytest
from click.testing import CliRunner, Result

from node.cli import main
from node.cli.clients import as_text, start_request
from node.cli.framework import sole_problem
from node.cli.leases import FILE_NAME as LEASES
from node.cli.leases import KeptLease
from node.cli.publisher import publisher_key
from node.config import NodeConfig
from node.files import replace_file
from node.running import Running, shown, sole_node
from protocol.identifiers import digest_of
from protocol.problems import BadRequest, NoCapacity, NotFound, Problem
from protocol.records import ServiceRecord, raw_public_key, verify
from tests.stub_controller import ARCHIVE, INSTANCE, SERVICE, TOKEN, StubController, stub_controller

REPOSITORY = Path(__file__).parents[3]
WORD_COUNT = REPOSITORY / "services" / "word_count"


@pytest.fixture
def stub() -> Iterator[StubController]:
    """A controller in a thread of its own: a command runs its own event loop."""
    ready, holder = threading.Event(), []
    loop = asyncio.new_event_loop()
    stop = asyncio.Event()

    async def serve() -> None:
        async with stub_controller() as running:
            holder.append(running)
            ready.set()
            await stop.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    try:
        assert ready.wait(10)
        yield holder[0]
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        loop.close()


def as_json(value: object) -> object:
    return json.loads(msgspec.json.encode(value))


class Shell:
    def __init__(self, data_dir: Path, controller: str) -> None:
        self.data_dir = data_dir
        self._environment = {
            "CORNERSTORE_DATA_DIR": str(data_dir),
            "CORNERSTORE_CONTROLLER": controller,
            "COLUMNS": "200",
        }

    def __call__(self, *arguments: str, stdin: bytes | None = None) -> Result:
        return CliRunner().invoke(main, arguments, env=self._environment, input=stdin)

    def json(self, *arguments: str) -> object:
        result = self(*arguments, "--json")
        assert result.exit_code == 0, result.stderr
        assert result.stderr == ""
        return json.loads(result.stdout)


@pytest.fixture
def shell(stub: StubController, tmp_path: Path) -> Shell:
    return Shell(tmp_path / "data", stub.url)


@pytest.fixture
def alone(tmp_path: Path) -> Shell:
    """No controller is asked."""
    return Shell(tmp_path / "data", "")


# --- clients ----------------------------------------------------------------------------------------------------------


def test_a_start_shows_where_why_and_how_long(shell: Shell, stub: StubController) -> None:
    result = shell("start", "wc01", "--alive-time", "9", "--param", "language=de", "--force-rebuild")
    assert result.exit_code == 0, result.stderr
    for expected in (stub.url, "the only match; free memory", "cold", "total 12 ms"):
        assert expected in result.stdout
    assert "fetch" in result.stderr, "progress goes to stderr"
    request = stub.starts[0]
    assert (request.service, request.alive_time, request.force_rebuild) == ("wc01", 9, True)
    assert request.parameters == {"language": "de"}


def test_a_start_by_meaning_as_json(shell: Shell, stub: StubController) -> None:
    answer = shell.json("start", "--category", "/text/", "--input", "text", "--output", "integer")
    assert answer == as_json(stub.answer())
    assert (stub.starts[0].category, stub.starts[0].inputs, stub.starts[0].outputs) == (
        "/text",
        ("text",),
        ("integer",),
    )


def test_later_commands_need_no_token(shell: Shell) -> None:
    assert shell("start", "wc01").exit_code == 0
    assert "stopped" in shell("stop", INSTANCE.instance[:4]).stdout
    assert "running" in shell("restart", INSTANCE.instance).stdout
    assert "running" in shell("alive", INSTANCE.instance, "--alive-time", "60").stdout
    assert "removed" in shell("rm", INSTANCE.instance).stdout
    refused = shell("stop", INSTANCE.instance)
    assert refused.exit_code == 1
    assert "not the lease's" in refused.stderr


def test_logs_are_shown_to_who_holds_the_lease_without_control_codes(shell: Shell) -> None:
    refused = shell("logs", INSTANCE.instance)
    assert refused.exit_code == 1
    shell("start", "wc01")
    assert shell("logs", INSTANCE.instance[:4]).stdout == "listening\n\N{REPLACEMENT CHARACTER}[2Jcounted 2 words\n"
    assert shell.json("logs", INSTANCE.instance, "-n", "1") == {
        "instance": INSTANCE.instance,
        "lines": ["\x1b[2Jcounted 2 words"],
    }
    assert shell("logs", INSTANCE.instance, "-n", "401").exit_code == 2


def test_a_second_start_shows_the_lease_that_is_held(shell: Shell, stub: StubController) -> None:
    shell("start", "wc01")
    shell("invoke", "wc01", "/wordcount", "-", stdin=b"one two")
    assert [request.leases for request in stub.starts] == [(), (TOKEN,)]


def test_a_stop_that_does_not_stop_says_so_and_fails(shell: Shell, stub: StubController) -> None:
    stub.other_holders = 1
    for verb in ("stop", "rm"):
        shell("start", "wc01")
        result = shell(verb, INSTANCE.instance)
        assert result.exit_code == 1
        assert "is still running: your lease ended; 1 other lease holds it" in result.stderr
        assert "Fix: It ends with the last lease." in result.stderr
        assert shell("alive", INSTANCE.instance).exit_code == 1, "the spent token is forgotten"


def an_operator(shell: Shell, stub: StubController) -> Running:
    stub.operator_token = "operators-secret"
    (shell.data_dir / "identity").mkdir(parents=True, exist_ok=True)
    (shell.data_dir / "identity" / "operator.token").write_text("operators-secret\n")
    return Running(node="ab" * 20, pid=1, rest=stub.url, peer="127.0.0.1:7401", dht="127.0.0.1:7401")


def test_the_operator_stops_for_all_with_the_second_stop(shell: Shell, stub: StubController) -> None:
    stub.other_holders = 1
    shell("start", "wc01")
    with sole_node(shell.data_dir), shown(shell.data_dir, an_operator(shell, stub)):
        first = shell("stop", INSTANCE.instance)
        assert "Fix: Run the command again" in first.stderr
        assert "stopped" in shell("stop", INSTANCE.instance).stdout


def test_a_refused_token_does_not_take_the_operators_rights_away(shell: Shell, stub: StubController) -> None:
    own = an_operator(shell, stub)
    with sole_node(shell.data_dir), shown(shell.data_dir, own):
        result = shell("stop", INSTANCE.instance, "--token", "stale")
    assert "stopped" in result.stdout
    assert "acting as this machine's operator" in result.stderr
    assert stub.authorizations == ["Bearer stale", "Bearer operators-secret"]


def test_an_instance_of_others_is_named_by_a_beginning_that_fits_one(shell: Shell, stub: StubController) -> None:
    stub.instances = (INSTANCE, msgspec.structs.replace(INSTANCE, instance="1a2bffffffffffff"))
    for text, code, said in (("1a2b3", 0, "stopped"), ("1a2b", 1, "fits 2 instances")):
        result = shell("stop", text, "--token", TOKEN)
        assert (result.exit_code, said in result.output) == (code, True), (text, result.output)


def test_a_service_is_no_instance_and_the_difference_is_told(shell: Shell) -> None:
    result = shell("stop", "wc01", "--token", TOKEN)
    assert result.exit_code == 1
    assert f"its instances are {INSTANCE.instance}" in result.stderr
    assert "cornerstore ps" in result.stderr


def test_only_what_lives_is_said_to_live(shell: Shell) -> None:
    shell("start", "wc01")
    assert "lives" not in shell("stop", INSTANCE.instance).stdout
    assert "lives" in shell("restart", INSTANCE.instance).stdout


def test_ps_shows_which_variant_runs(shell: Shell, stub: StubController) -> None:
    stub.instances = (msgspec.structs.replace(INSTANCE, variant="precise"),)
    assert "precise" in shell("ps").stdout


def test_ps_and_the_regions_views(shell: Shell) -> None:
    assert "wc01 (wordcount)" in shell("ps").stdout
    assert "974 MB" in shell("agents").stdout
    assert "self" in shell("regions").stdout
    assert "no node runs here" in shell("status").stdout
    status = shell.json("status")
    assert isinstance(status, dict)
    assert status["health"]["region"] == "eu/a"
    assert status["instances"] == {"running": 1}


def test_status_says_why_services_are_where_they_are_and_where_one_would_be(shell: Shell) -> None:
    shown = " ".join(shell("status", "--why", "--would", "wc01").stdout.split())
    assert "wc01 would be placed nowhere here" in shown
    assert "wc01 cold on agent n1 of eu/a, 2 times" in shown
    assert "not agent n2 of eu/a: has it built, but needs 50 MB, 10 MB are free" in shown
    assert "not region eu/b: it did not\N{REPLACEMENT CHARACTER}[2J answer and 3 more" in shown
    assert "od01 refused (no-capacity)" in shown
    status = shell.json("status", "--why")
    assert isinstance(status, dict)
    assert [p["outcome"] for p in status["placements"]] == ["cold", "refused"]
    assert status["placements"][0]["decision"]["passed_over"][0]["cause"] == "memory"
    assert "would be placed" not in shell("status").stdout
    assert shell("status", "--would", "nonsense").exit_code == 1


def test_a_start_shows_who_did_not_get_it(shell: Shell) -> None:
    shown = " ".join(shell("start", "wc01").stdout.split())
    assert "instead of not agent n2 of eu/a: has it built, but needs 50 MB" in shown


def test_invoke_posts_stdin_and_prints_only_the_reply(shell: Shell) -> None:
    result = shell("invoke", "wc01", "/wordcount", "-", stdin=b"one two three")
    assert result.exit_code == 0, result.stderr
    assert result.stdout_bytes == b"3"


def test_invoke_asks_for_the_form_that_is_wanted(shell: Shell) -> None:
    assert (
        shell("invoke", "wc01", "/wordcount", "-", "--accept", "application/json", stdin=b"one").stdout == '{"words":1}'
    )


def test_invoke_writes_a_file(shell: Shell, tmp_path: Path) -> None:
    text, out = tmp_path / "text", tmp_path / "out"
    text.write_bytes(b"one two")
    assert shell("invoke", "-", "/wordcount", str(text), "--category", "/text", "-o", str(out)).exit_code == 0
    assert out.read_bytes() == b"2"


def test_invoke_writes_over_a_file_only_when_told_to(shell: Shell, stub: StubController, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.write_bytes(b"kept")
    arguments = ("invoke", "wc01", "/wordcount", "-", "-o", str(out))
    refused = shell(*arguments, stdin=b"one two")
    assert (refused.exit_code, stub.starts) == (1, []), "nothing is started for it"
    assert "is there already" in refused.stderr
    assert "--force" in refused.stderr
    assert out.read_bytes() == b"kept"
    assert shell(*arguments, "--force", stdin=b"one two").exit_code == 0
    assert out.read_bytes() == b"2"
    assert shell("invoke", "wc01", "/wordcount", "-", "-o", "/dev/null", stdin=b"one").exit_code == 0


def test_what_is_no_path_starts_nothing(shell: Shell, stub: StubController) -> None:
    result = shell("invoke", "wc01", "wordcount", "-", stdin=b"one")
    assert result.exit_code == 1
    assert "A path starts with a slash" in result.stderr
    assert stub.starts == []


def test_a_terminal_is_shown_text_and_nothing_else() -> None:
    assert as_text("zwölf\n".encode()) == "zwölf\n"
    for photo in (b"\xff\xd8\xff\xe0\x00\x10JFIF", b"BM\x00\x00"):
        with pytest.raises(BadRequest) as caught:
            as_text(photo)
        assert "-o FILE" in caught.value.fix


def test_a_request_names_a_service_or_a_meaning_but_not_both() -> None:
    assert start_request("wc01").service == "wc01"
    for service, category in (("wc01", "/text"), (None, None)):
        with pytest.raises(click.UsageError):
            start_request(service, category=category)


# --- developers -------------------------------------------------------------------------------------------------------


def test_a_folder_is_packed_validated_and_published_with_a_signed_record(
    shell: Shell, stub: StubController, tmp_path: Path
) -> None:
    archive = tmp_path / "wc.csar"
    packed = shell.json("pack", str(WORD_COUNT), "-o", str(archive))
    assert isinstance(packed, dict)
    assert packed["digest"] == digest_of(archive.read_bytes())
    described = shell.json("validate", str(archive))
    assert isinstance(described, dict)
    assert described["id"] == packed["service"]["id"]
    assert shell.json("publish", str(WORD_COUNT)) == as_json(SERVICE)
    body, envelope = stub.uploads[0]
    assert digest_of(body) == packed["digest"], "the same files give the same archive"
    assert envelope is not None
    record = verify(envelope).record
    assert isinstance(record, ServiceRecord)
    assert (record.digest, record.id) == (packed["digest"], described["id"])
    assert record.publisher == raw_public_key(publisher_key(shell.data_dir))


def test_an_invalid_archive_is_told_with_its_code(alone: Shell, tmp_path: Path) -> None:
    bad = tmp_path / "bad.csar"
    bad.write_bytes(b"this is no zip file")
    result = alone("validate", str(bad))
    assert result.exit_code == 1
    assert "code: " in result.stderr
    assert result.stdout == ""


def test_search_show_fetch(shell: Shell, stub: StubController, tmp_path: Path) -> None:
    assert "wordcount" in shell("search").stdout
    assert shell.json("search", "count", "--category", "/text", "--input", "text") == [as_json(SERVICE)]
    assert stub.queries[-1] == {"q": ["count"], "category": ["/text"], "input": ["text"], "limit": ["1000"]}
    assert SERVICE.digest in shell("show", "wc01").stdout
    out = tmp_path / "fetched.csar"
    assert shell("fetch", SERVICE.digest, "-o", str(out)).exit_code == 0
    assert out.read_bytes() == ARCHIVE


def test_a_long_search_is_cut_for_people_and_whole_for_programs(shell: Shell, stub: StubController) -> None:
    stub.further_services = tuple(msgspec.structs.replace(SERVICE, id=f"wc{n}x") for n in range(2, 1202))
    result = shell("search")
    assert result.stdout.count("wordcount") == 100
    assert "100 of 1201" in result.stderr
    assert len(shell.json("search")) == 1201  # type: ignore[arg-type]
    assert len(shell.json("search", "--limit", "1100")) == 1100  # type: ignore[arg-type]
    result = shell("search", "--limit", "5000")
    assert result.stdout.count("wordcount") == 1201
    assert result.stderr == ""


def test_a_misspelt_service_is_told_what_comes_near(shell: Shell) -> None:
    for command in ("show", "fetch", "withdraw"):
        result = shell(command, "wordcont")
        assert result.exit_code == 1
        assert "Did you mean wordcount?" in result.stderr, result.stderr


def test_a_file_that_is_there_is_not_overwritten_unless_asked(shell: Shell, tmp_path: Path) -> None:
    out = tmp_path / "mine.csar"
    out.write_bytes(b"mine")
    refused = shell("fetch", "wc01", "-o", str(out))
    assert refused.exit_code == 1
    assert "--force" in refused.stderr
    assert out.read_bytes() == b"mine"
    assert shell("fetch", "wc01", "-o", str(out), "--force").exit_code == 0
    assert out.read_bytes() == ARCHIVE


@pytest.mark.parametrize("beginning", [SERVICE.digest[:19], SERVICE.digest.removeprefix("sha256:")[:4]])
def test_a_digest_may_be_named_by_its_beginning(shell: Shell, stub: StubController, beginning: str) -> None:
    assert SERVICE.digest in shell("show", beginning).stdout
    assert shell("start", beginning).exit_code == 0
    assert stub.starts[-1].service == SERVICE.digest
    twin = msgspec.structs.replace(SERVICE, id="od01", digest=SERVICE.digest[:30] + "0" * 41)
    stub.further_services = (twin,)
    for command in ("show", "start"):
        refused = shell(command, beginning)
        assert refused.exit_code == 1
        assert "begin with" in refused.stderr
        assert twin.digest in refused.stderr
    assert shell("start", "sha256:123").exit_code == 1, "too short to mean one"


def test_search_and_show_tell_what_the_record_does_not_hold(shell: Shell) -> None:
    assert SERVICE.publisher[:8] in shell("search").stdout
    assert "cornerstore validate" in shell("show", "wc01").stderr


def test_withdraw_takes_the_record_of_ones_own_key(shell: Shell, stub: StubController) -> None:
    ours = msgspec.structs.replace(SERVICE, publisher=raw_public_key(publisher_key(shell.data_dir)).hex())
    stub.further_services = (ours,)
    for name in ("wc01", SERVICE.digest):
        assert shell("withdraw", name).exit_code == 0
    tombstones = [verify(envelope).record for _, envelope in stub.withdrawn if envelope]
    assert [t.publisher.hex() for t in tombstones if isinstance(t, ServiceRecord)] == [ours.publisher] * 2


def test_only_the_publisher_withdraws(shell: Shell, stub: StubController, monkeypatch: pytest.MonkeyPatch) -> None:
    refused = shell("withdraw", "wc01")
    assert refused.exit_code == 1
    assert "published by" in refused.stderr
    assert stub.withdrawn == []
    ours = msgspec.structs.replace(SERVICE, publisher=raw_public_key(publisher_key(shell.data_dir)).hex())
    monkeypatch.setattr("tests.stub_controller.SERVICE", ours)
    assert shell("withdraw", "wc01").exit_code == 0
    digest, envelope = stub.withdrawn[0]
    assert digest == SERVICE.digest
    assert envelope is not None
    record = verify(envelope).record
    assert isinstance(record, ServiceRecord)
    assert record.withdrawn


# --- operators --------------------------------------------------------------------------------------------------------


def test_a_mesh_is_founded_and_invites(alone: Shell) -> None:
    founded = alone.json("bootstrap", "init", "--mesh", "home", "--region", "eu/a", "--site", "kitchen")
    assert isinstance(founded, dict)
    config = NodeConfig.load(alone.data_dir)
    assert (config.mesh, config.region, config.site) == ("home", "eu/a", "kitchen")
    assert config.roles == ("controller", "agent", "store")
    invitation = alone.json("bootstrap", "invite", "--region", "eu/b", "--ttl", "2h", "--address", "10.1.0.10:7401")
    assert isinstance(invitation, dict)
    assert invitation["token"].startswith("cornerstore1-")
    assert (invitation["region"], invitation["addresses"]) == ("eu/b", ["10.1.0.10:7401"])
    again = alone("bootstrap", "init", "--mesh", "other", "--region", "eu/a")
    assert again.exit_code == 1
    assert NodeConfig.load(alone.data_dir).mesh == "home"


def test_an_operators_settings_survive_founding(alone: Shell) -> None:
    before = NodeConfig(mesh="old", region="old", site="kitchen")
    network = msgspec.structs.replace(before.network, host="127.0.0.1", rest_port=7999)
    msgspec.structs.replace(before, network=network).save(alone.data_dir)
    alone.json("bootstrap", "init", "--mesh", "home", "--region", "eu/a", "--role", "store")
    config = NodeConfig.load(alone.data_dir)
    assert (config.mesh, config.region, config.roles) == ("home", "eu/a", ("store",))
    assert (config.network.rest_port, config.site) == (7999, "kitchen")


def test_a_mangled_token_is_refused_with_its_fix(alone: Shell) -> None:
    result = alone("bootstrap", "join", "cornerstore1-abc")
    assert result.exit_code == 1
    assert "Fix: Copy the whole line" in result.stderr


def test_up_without_a_mesh_says_what_to_do(alone: Shell) -> None:
    result = alone("up")
    assert result.exit_code == 1
    assert "cornerstore bootstrap init" in result.stderr


@pytest.mark.parametrize(("text", "code"), [("2h", 0), ("1 week", 2), ("-5", 2), ("", 2)])
def test_durations(alone: Shell, text: str, code: int) -> None:
    alone("bootstrap", "init", "--mesh", "home", "--region", "eu/a")
    assert alone("bootstrap", "invite", "--ttl", text, "--address", "127.0.0.1:1").exit_code == code


# --- errors -----------------------------------------------------------------------------------------------------------


def test_a_problem_goes_to_stderr_with_cause_and_fix(shell: Shell, stub: StubController) -> None:
    stub.problem = NoCapacity("no agent has 50 MB", fix="Stop something.", regions={"eu/a": "memory full"})
    result = shell("start", "wc01")
    assert result.exit_code == 1
    assert result.stdout == ""
    for expected in ("no agent has 50 MB", "Fix: Stop something.", "eu/a: memory full", "no-capacity"):
        assert expected in result.stderr


def test_with_json_a_problem_is_a_problem_object(shell: Shell, stub: StubController) -> None:
    stub.problem = NoCapacity("no agent has 50 MB", fix="Stop something.")
    result = shell("--json", "start", "wc01")
    assert result.exit_code == 1
    body = json.loads(result.stderr)
    assert (body["status"], body["detail"], body["fix"]) == (503, "no agent has 50 MB", "Stop something.")


@pytest.mark.parametrize(
    "arguments",
    [("nonsense",), ("start",), ("start", "wc01", "--param", "x"), ("pack", "/nowhere"), ("ps", "--colour")],
)
def test_wrong_usage_exits_2(alone: Shell, arguments: tuple[str, ...]) -> None:
    assert alone(*arguments).exit_code == 2


def test_an_unforeseen_fault_shows_no_traceback_unless_asked(alone: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("a fault of ours")

    monkeypatch.setattr("bootstrap.create_mesh", broken)
    arguments = ("bootstrap", "init", "--mesh", "home", "--region", "eu/a")
    result = alone(*arguments)
    assert result.exit_code == 1
    assert "a fault of ours" in result.stderr
    assert "--debug" in result.stderr
    assert "Traceback" not in result.stderr
    assert isinstance(alone(*arguments, "--debug").exception, ZeroDivisionError)


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_whatever_ends_a_command_lets_it_put_away_what_it_began(
    alone: Shell, monkeypatch: pytest.MonkeyPatch, ending: signal.Signals
) -> None:
    assert threading.current_thread() is threading.main_thread(), "else the signal would end this process"
    put_away = []

    async def interrupted(*_: object) -> None:
        try:
            signal.raise_signal(ending)
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0)
            put_away.append(ending)

    monkeypatch.setattr("node.cli.clients._discover", interrupted)
    assert alone("discover").exit_code == 130
    assert put_away == [ending]
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_the_version_is_told(alone: Shell) -> None:
    assert alone("--version").stdout == f"cornerstore, version {version('cornerstore')}\n"


def test_a_problem_inside_a_task_group_is_still_a_problem() -> None:
    problem = NotFound("gone")
    assert sole_problem(ExceptionGroup("", [ExceptionGroup("", [problem])])) is problem
    assert sole_problem(ValueError()) is None
    assert isinstance(problem, Problem)


def test_a_controller_that_is_away_is_named(tmp_path: Path) -> None:
    result = Shell(tmp_path, "http://127.0.0.1:9")("ps")
    assert result.exit_code == 1
    assert "127.0.0.1:9 cannot be used: nothing listens there (connection refused)" in result.stderr


def test_the_operators_token_goes_to_this_machines_own_controller_only(shell: Shell, stub: StubController) -> None:
    (shell.data_dir / "identity").mkdir(parents=True)
    (shell.data_dir / "identity" / "operator.token").write_text("operators-secret\n")
    shell("stop", INSTANCE.instance)
    own = Running(node="ab" * 20, pid=1, rest=stub.url, peer="127.0.0.1:7401", dht="127.0.0.1:7401")
    with sole_node(shell.data_dir), shown(shell.data_dir, own):
        shell("stop", INSTANCE.instance)
    assert stub.authorizations == ["", "Bearer operators-secret"]


def test_a_lease_works_at_this_machines_own_controller_when_its_address_changed(
    stub: StubController, alone: Shell
) -> None:
    lease = KeptLease(TOKEN, "http://127.0.0.1:9", "wc01")
    replace_file(alone.data_dir / LEASES, msgspec.json.encode({INSTANCE.instance: lease}))
    assert "nothing listens there" in alone("alive", INSTANCE.instance).stderr
    own = Running(node="ab" * 20, pid=1, rest=stub.url, peer="127.0.0.1:7401", dht="127.0.0.1:7401")
    with sole_node(alone.data_dir), shown(alone.data_dir, own):
        result = alone("alive", INSTANCE.instance)
    assert result.exit_code == 0, result.stderr
    assert f"asking {stub.url}" in result.stderr
    assert stub.authorizations[-1] == f"Bearer {TOKEN}"


def test_a_lease_works_at_the_controller_that_hosts_when_the_one_that_gave_it_is_dead(
    stub: StubController, alone: Shell
) -> None:
    lease = KeptLease(TOKEN, "http://127.0.0.1:9", "wc01", host=stub.url)
    replace_file(alone.data_dir / LEASES, msgspec.json.encode({INSTANCE.instance: lease}))
    result = alone("alive", INSTANCE.instance)
    assert result.exit_code == 0, result.stderr
    assert f"asking {stub.url}" in result.stderr
    assert stub.authorizations == [f"Bearer {TOKEN}"]


# --- documentation ----------------------------------------------------------------------------------------------------


def command_names(group: click.Group, prefix: str = "") -> Iterator[str]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from command_names(command, f"{prefix}{name} ")
        else:
            yield f"{prefix}{name}"


def test_every_command_is_documented_with_an_example_and_nothing_else_is() -> None:
    text = (REPOSITORY / "docs" / "commands.md").read_text()
    names = list(command_names(main))
    assert re.findall(r"^### `cornerstore ([a-z ]+)`$", text, re.MULTILINE) == names
    for section in re.split(r"^### ", text, flags=re.MULTILINE)[1:]:
        name = section.partition("`")[2].partition("`")[0]
        assert f"$ {name}" in section, f"{name} has no example"


@pytest.mark.parametrize(("name", "asks"), [("start", True), ("ps", True), ("up", False), ("bootstrap join", False)])
def test_every_command_takes_the_common_options_that_mean_something_to_it(alone: Shell, name: str, asks: bool) -> None:
    shown = alone(*name.split(), "--help").stdout
    for option in ("--json", "--data-dir", "--debug"):
        assert option in shown
    for option in ("--controller", "--region"):
        assert (option in shown) == asks


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("alive", "x", "--alive-time", "abc"), "'abc' is not a valid whole number of seconds"),
        (("start", "wc01", "--wait", "soon"), "'soon' is not a valid number of seconds"),
        (("bootstrap", "invite", "--uses", "two"), "'two' is not a valid whole number"),
    ],
)
def test_numbers_are_asked_for_in_words(alone: Shell, arguments: tuple[str, ...], expected: str) -> None:
    result = alone(*arguments)
    assert result.exit_code == 2
    assert expected in result.stderr


def test_a_short_invitation_is_valid_for_its_time(alone: Shell) -> None:
    alone("bootstrap", "init", "--mesh", "home", "--region", "eu/a")
    invited = alone("bootstrap", "invite", "--ttl", "1s", "--address", "127.0.0.1:1")
    assert "Valid for 1 s." in invited.stderr
