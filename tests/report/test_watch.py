"""`fipo watch` as its own process: what it serves, to whom, and what a browser shows while a run changes."""

import errno
import fcntl
import http.client
import json
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from urllib.parse import urlsplit

import pytest
from page_driver import click_on_curve, slowest_frame
from synthetic_traces import HOSTILE, PARAMS, trace

from fipo.cli import main
from fipo.errors import DataError
from fipo.report.follow import FollowedRun
from fipo.report.page import labels_of
from fipo.run_folder import locked, trace_file
from fipo.traces import write_traces

UPDATES = 4  # a rollout


@contextmanager
def watching(*runs):
    """The address that `fipo watch` prints."""
    command = [sys.executable, "-m", "fipo.cli", "watch", *map(str, runs), "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        yield urlsplit(process.stdout.readline().strip())
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0


def get(address, path, token=None, **headers):
    """Status, headers and body."""
    connection = http.client.HTTPConnection(address.hostname, address.port, timeout=20)
    token = address.query.removeprefix("token=") if token is None else token
    separator = "&" if "?" in path else "?"
    connection.request("GET", f"{path}{separator}token={token}", headers=headers)
    answer = connection.getresponse()
    return answer.status, dict(answer.getheaders()), answer.read()


def write_rollout(run, rollout, *, step=0, **how):
    rows = [
        trace(sample, length=40, rollout=rollout, update=sample % UPDATES, group=sample // 4, run="live", **how)
        for sample in range(8 * step, 8 * step + 8)
    ]
    path = run / "traces" / trace_file(rollout, step, 0)
    return write_traces(rows, path, PARAMS, updates_per_rollout=UPDATES)


def log(run, *steps):
    run.mkdir(exist_ok=True)
    with (run / "metrics.jsonl").open("a") as file:
        for step in steps:
            file.write(json.dumps({"step": step, "reward": step / 100, "fipo/weight_mean": 1.0}) + "\n")


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """Of a watched run that holds, besides two rollouts, a damaged, a dangling and a hostile one, and a secret."""
    run = tmp_path_factory.mktemp("watched") / "live"
    log(run, *range(1, 13))
    for rollout in (0, 2):
        write_rollout(run, rollout)
    for name in ("rollout_000003_step_0000_rank_0.parquet", "rollout_99999999999999_x.parquet", "rollout_-1_.parquet"):
        (run / "traces" / name).write_bytes(b"PAR1 nonsense")
    (run / "traces" / "rollout_000004_step_0000_rank_0.parquet").symlink_to("/nowhere")
    write_rollout(run, 5, pieces=HOSTILE, prompt="<b>\u202e</script>")
    (run / "secret").write_text("secret")
    with watching(run) as address:
        yield address


def test_state_charts_and_traces(address):
    status, headers, page = get(address, "/")
    assert status == 200 and b'id="data-about"' in page and b'id="data-plotly"' in page
    assert headers["cache-control"] == "no-store" and headers["x-frame-options"] == "DENY"
    assert "access-control-allow-origin" not in headers
    (found,) = json.loads(get(address, "/state")[2])["runs"]
    assert (found["label"], found["status"], found["updates"]) == ("live", "unknown", UPDATES)
    assert [number for number, _ in found["rollouts"]] == [0, 2, 3, 5]
    assert json.loads(get(address, "/charts")[2])[0]["title"] == "Reward"
    blocks = json.loads(get(address, "/traces?run=0&rollout=2")[2])["blocks"]
    assert {"traces", "tokens", "log_ratio", "vocabulary_bytes"} <= set(blocks)
    status, _, body = get(address, "/traces?run=0&rollout=3")  # damaged; the next is hostile
    assert status == 404 and b"holds no readable trace" in body
    assert get(address, "/traces?run=0&rollout=5")[0] == 200


def test_nobody_else_is_answered(address):
    for path in ("/", "/state", "/charts", "/traces?run=0&rollout=2"):
        for token in ("", "x", address.query.removeprefix("token=")[:-1]):
            assert get(address, path, token=token)[0] == 403
        for host in ("example.com", "example.com:80", "127.0.0.1.example.com", "", "[::2]:80"):
            assert get(address, path, Host=host)[0] == 403
        for site in ("cross-site", "same-site"):  # the second: another port of this machine
            assert get(address, path, **{"Sec-Fetch-Site": site})[0] == 403
    assert get(address, "/", Host=f"localhost:{address.port + 1}")[0] == 200  # ssh -L to another port


def test_nothing_but_the_report_is_served(address):
    for path in ("/secret", "/traces/secret", "/../secret", "/%2e%2e/secret", "/state/..%2fsecret", "/docs"):
        status, headers, body = get(address, path)
        assert status in (403, 404) and b"secret" not in body
        assert headers["x-frame-options"] == "DENY"
    odd = ["run=0", "run=1&rollout=2", "run=0&rollout=1", "run=-1&rollout=2", "run=0&rollout=2.0"]
    odd += ["", "run=%D9%A0&rollout=2", "run=0&rollout=" + "9" * 400, "run=0&rollout=../../secret"]
    for query in odd:
        status, _, body = get(address, f"/traces?{query}")
        assert status == 404 and b"choose another" in body, query
    connection = http.client.HTTPConnection(address.hostname, address.port)
    connection.request("POST", f"/state?{address.query}")
    assert connection.getresponse().status == 405


def test_it_listens_on_loopback_alone_and_a_port_that_is_taken_is_one_sentence(address, tmp_path, capsys):
    assert address.hostname == "127.0.0.1"
    others = {info[4][0] for info in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)} - {"127.0.0.1"}
    for other in others:
        with pytest.raises(OSError):  # noqa: PT011  refused, or no route
            socket.create_connection((other, address.port), timeout=2)
    assert main(["watch", str(tmp_path), "--port", str(address.port)]) == 2
    assert "cannot be had (Address already in use); choose another with --port" in capsys.readouterr().err


def looked_at(run):
    run.look()
    return run.status


def test_how_a_run_stands(tmp_path):
    folder = tmp_path / "run"
    run = FollowedRun(folder, "run")
    assert looked_at(run) == "not started"
    with locked(folder) as lock:
        assert looked_at(run) == "running"
        lock.note("finished")
    assert looked_at(run) == "finished"
    with pytest.raises(KeyError), locked(folder):
        raise KeyError
    assert looked_at(run) == "failed"
    shutil.rmtree(folder)
    assert looked_at(run) == "deleted"
    with locked(folder):
        assert looked_at(run) == "running"


def test_a_killed_run_is_seen_and_its_folder_can_be_locked_again(tmp_path):
    run = FollowedRun(tmp_path / "run", "run")
    code = "import sys, time; from pathlib import Path; from fipo.run_folder import locked\n"
    code += "with locked(Path(sys.argv[1])): print('locked', flush=True); time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", code, str(run.path)], stdout=subprocess.PIPE)
    process.stdout.readline()
    assert looked_at(run) == "running"
    process.kill()
    process.wait()
    assert looked_at(run) == "killed"
    with (run.path / ".lock").open() as file:  # as a watcher that looks right now
        fcntl.flock(file, fcntl.LOCK_SH)
        pid = os.fork()
        if pid == 0:
            fcntl.flock(file, fcntl.LOCK_UN)
            os._exit(0)
        os.waitpid(pid, 0)
        with locked(run.path):
            assert looked_at(run) == "running"


def test_a_file_system_without_locks_is_told(tmp_path, monkeypatch, caplog):
    def flock(*_):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", flock)
    with locked(tmp_path / "run") as lock:
        lock.require()
    assert "cannot be locked" in caplog.text and "keeps two runs out of one folder" in caplog.text


def test_a_run_knows_when_its_folder_is_anothers(tmp_path):
    folder = tmp_path / "run"
    with locked(folder) as lock:
        lock.require()
        shutil.rmtree(folder)
        with pytest.raises(DataError, match="was deleted while the run was under way; start it again"):
            lock.require()
        with locked(folder), pytest.raises(DataError, match="another run has begun there"):
            lock.require()


def test_metrics_are_read_as_they_are_appended(tmp_path):
    run, path = FollowedRun(tmp_path, "run"), tmp_path / "metrics.jsonl"

    def rewards():
        run.look()
        return run.metrics.series.get("reward")

    log(tmp_path, 1, 2)
    with path.open("a") as file:
        file.write('{"step": 3, "rew')
    assert rewards() == {1: 0.01, 2: 0.02}
    before = run.version
    assert rewards() and run.version == before
    with path.open("a") as file:
        file.write('ard": 0.5}\nno JSON\n[[[[\n')
    assert rewards() == {1: 0.01, 2: 0.02, 3: 0.5}
    path.rename(tmp_path / "old")  # a resumed run writes the file anew, without what came after its checkpoint
    log(tmp_path, 1)
    assert rewards() == {1: 0.01} and run.version > before
    log(tmp_path, 2, 3)
    run.look()
    with path.open("r+") as file:  # another run in its place: the same inode, and longer than before
        file.truncate(0)
        file.writelines(json.dumps({"step": step, "reward": 1.0}) + "\n" for step in range(1, 9))
    assert rewards() == dict.fromkeys(range(1, 9), 1.0)
    path.write_text("")
    assert rewards() is None


def test_a_long_run_costs_little_while_nothing_comes(tmp_path):
    one = write_rollout(tmp_path, 0)
    for rollout in range(1, 100):
        for step in range(60):
            os.link(one, one.with_name(trace_file(rollout, step, 0)))
    os.utime(one.parent, (time.time() - 60,) * 2)
    run = FollowedRun(tmp_path, "run")
    run.look()
    assert len(run.rollouts) == 100 and run.updates == UPDATES
    assert seconds(run.look) < 0.02
    write_rollout(tmp_path, 200)
    run.look()
    assert max(run.rollouts) == 200


def test_odd_things_under_the_names_of_a_run(tmp_path):
    run = FollowedRun(tmp_path, "run")
    for name in (".lock", "metrics.jsonl"):
        os.mkfifo(tmp_path / name)  # opening it would wait for a writer
    assert looked_at(run) == "not started"
    (tmp_path / ".lock").unlink()
    (tmp_path / ".lock").write_bytes(b"\xff\xfe")
    assert looked_at(run) == "not started"
    assert labels_of([tmp_path / os.fsdecode(b"\xff")])[0].encode().endswith("\ufffd".encode())


def wait_until(page, expression):
    """The report's policy forbids what wait_for_function does."""
    for _ in range(150):
        if page.evaluate(expression):
            return
        page.wait_for_timeout(100)
    pytest.fail(f"{expression} did not come true; the state is {page.evaluate('fipo.state')}")


@pytest.mark.browser
def test_a_run_from_before_its_start_to_its_deletion(tmp_path, open_page):
    run = tmp_path / "run"
    with watching(run) as address:
        page = open_page(address.geturl(), "")
        runs = page.locator("#live-runs")
        runs.get_by_text("has not started").wait_for()
        with locked(run) as lock:
            log(run, 1, 2, 3)
            runs.get_by_text("is running").wait_for()
            page.locator("#charts .plot.drawn").first.wait_for()
            write_rollout(run, 0)
            page.locator("#tab-credit:not([hidden])").click()
            page.locator("#samples .row").first.wait_for()
            assert page.locator("#sample-count").text_content() == "8 traces"
            page.locator("#samples .row", has_text="sample 5").click()
            page.locator("#token-5-3").click()
            before = page.evaluate("location.hash")
            write_rollout(run, 0, step=1)  # another micro-batch of the same rollout
            page.locator("#sample-count", has_text="16 traces").wait_for()
            at = page.evaluate("fipo.page.traces[fipo.state.at]")
            assert (at["sample"], page.evaluate("fipo.state.selected")) == (5, 3)
            assert page.evaluate("location.hash") == before
            write_rollout(run, 2)
            page.locator("#rollout option", has_text="2").wait_for(state="attached")
            assert page.locator("#rollout").input_value() == "0.0"  # the place stays
            log(run, *range(4, 14))
            wait_until(page, drawn_up_to(13))
            page.click("#tab-curves")
            click_on_curve(page, 0.95)
            wait_until(page, "fipo.state.tab === 'credit' && fipo.page.traces.every((facts) => facts.rollout === 2)")
            lock.note("finished")
        runs.get_by_text("has finished").wait_for()
        page.reload()
        wait_until(page, "fipo.state.tab === 'credit' && fipo.page.traces[0]?.rollout === 2")
        shutil.rmtree(run)
        runs.get_by_text("has been deleted").wait_for()
    page.locator("#live-trouble", has_text="fipo watch does not answer").wait_for()
    assert page.locator("#samples .row").count() > 0  # what was shown stays to be read
    assert address.query not in page.locator("body").text_content()


def drawn_up_to(step):
    return f"JSON.stringify(fipo.page.charts[0].figure.data[0].x).endsWith('{step}]')"


@pytest.mark.browser
def test_new_data_leave_the_reader_where_he_is(tmp_path, open_page):
    run = tmp_path / "run"
    log(run, 1)
    write_rollout(run, 0)
    long = [trace(20 + sample, length=1500, rollout=1, group=5, run="live") for sample in range(60)]
    write_traces(long, run / "traces" / trace_file(1, 0, 0), PARAMS, updates_per_rollout=UPDATES)
    with watching(run) as address:
        page = open_page(address.geturl(), "#tab=credit&watched=0.1&at=0")
        page.locator("#token-0-3").click()
        page.evaluate("Object.assign(document.getElementById('stage'), { scrollTop: 400 })")
        page.evaluate("Object.assign(document.getElementById('samples'), { scrollTop: 900 })")
        page.wait_for_timeout(300)
        where = "['stage', 'samples'].map((id) => document.getElementById(id).scrollTop)"
        before = page.evaluate(where)
        log(run, 2, 3)
        wait_until(page, drawn_up_to(3))
        assert page.evaluate(where) == before
        page.evaluate("document.querySelector('#stage .tokens').focus({ preventScroll: true })")
        another = [trace(200, length=40, rollout=1, group=50, run="live")]
        write_traces(another, run / "traces" / trace_file(1, 1, 0), PARAMS, updates_per_rollout=UPDATES)
        page.locator("#sample-count", has_text="61 traces").wait_for()
        assert page.evaluate(where) == before
        assert page.evaluate("document.activeElement.className") == "tokens"


@pytest.mark.browser
def test_what_cannot_be_read_or_is_not_there_gives_way(tmp_path, open_page):
    run = tmp_path / "run"
    write_rollout(run, 1)
    (run / "traces" / trace_file(2, 0, 0)).write_bytes(b"PAR1 nonsense")
    with watching(run) as address:
        for fragment in ("", "#watched=0.77", "#watched=5.1", "#watched=0.2"):
            page = open_page(address.geturl(), fragment)
            wait_until(page, "fipo.page.traces[0]?.rollout === 1")
            assert page.evaluate("fipo.state.watched") == "0.1"


@pytest.mark.browser
def test_the_filter_knows_the_run_that_is_shown_and_a_hostile_one_is_data(tmp_path, open_page):
    hostile = "<img src=x onerror=alert(1)>"
    write_rollout(tmp_path / "a", 0)
    rows = [trace(0, run=hostile, pieces=HOSTILE, prompt="<script>alert(1)</script>")]
    write_traces(rows, tmp_path / hostile / "traces" / trace_file(0, 0, 0), PARAMS)
    with watching(tmp_path / "a", tmp_path / hostile) as address:
        page = open_page(address.geturl(), "#tab=credit&watched=0.0&filter.run=live")
        options = "Array.from(document.getElementById('filter-run').options, (option) => option.value).join()"
        wait_until(page, f"{options} === ',live'")
        page.locator("#rollout").select_option("1.0")
        wait_until(page, f"{options} === ',{hostile}'")
        assert page.locator("#sample-count").text_content() == "1 traces"
        page.locator("#live-runs li").first.wait_for()
        assert page.locator("img").count() == 0
        assert "<img src=x" in page.locator("#live-runs").text_content().replace("·", " ")


@pytest.mark.browser
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_long_run_stays_fluid(browser, tmp_path):
    """10,000 updates, 200 traced rollouts of 64 × 4,096 tokens: data are fetched as they are looked at."""
    run = tmp_path / "long"
    rows = [trace(sample, length=4096, run="long", update=sample % UPDATES) for sample in range(64)]
    first = write_traces(rows, run / "traces" / trace_file(0, 0, 0), PARAMS, updates_per_rollout=50)
    for rollout in range(1, 200):  # how long reading takes does not depend on what the others hold
        os.link(first, run / "traces" / trace_file(rollout, 0, 0))
    names = ["reward", *(f"fipo/length_p{q}" for q in (10, 50, 90, 99)), "entropy", "fipo/policy_kl"]
    names += [f"fipo/weight_{name}" for name in ("mean", "min", "max", "at_low", "at_high")]
    names += [f"other/{number}" for number in range(40)]
    with (run / "metrics.jsonl").open("w") as file:
        for step in range(1, 10_001):
            values = {name: math.sin(step * (number + 1) / 300) for number, name in enumerate(names)}
            file.write(json.dumps({"step": step} | values) + "\n")

    with watching(run) as address:
        times = {name: seconds(get, address, path) for name, path in PATHS.items()}
        sizes = {name: len(get(address, path, **{"Accept-Encoding": "gzip"})[2]) for name, path in PATHS.items()}
        page = browser.new_context(viewport={"width": 1300, "height": 850}).new_page()

        def shown(selector, act, *arguments):
            act(*arguments)
            page.locator(selector).first.wait_for()

        times["credit shown"] = seconds(shown, "#stage .token", page.goto, f"{address.geturl()}#tab=credit")
        page.evaluate("window.before = fipo.page.traces; 0")
        page.locator("#rollout").select_option("0.100")
        times["another rollout"] = seconds(
            shown, "#stage .token", wait_until, page, "fipo.page.traces !== window.before"
        )
        times["curves drawn"] = seconds(shown, "#charts .plot.drawn .scatterlayer", page.click, "#tab-curves")
        frames = slowest_frame(page)
        page.context.close()
    print({name: f"{value:.2f} s" for name, value in times.items()}, sizes, f"slowest frame {frames:.0f} ms")
    assert max(times.values()) < 10
    assert times["state, again"] < 0.2  # this is asked every two seconds, beside the training
    assert frames < 200


PATHS = {"state": "/state", "state, again": "/state", "charts": "/charts", "traces": "/traces?run=0&rollout=199"}


def seconds(call, *arguments):
    start = time.monotonic()
    call(*arguments)
    return time.monotonic() - start
