"""A reviewer's browser reveals nothing about the review page to another port or program of the machine."""

import errno
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from flows.people.review.links import Served, review_url
from flows.people.review.server import PORT, serve_review
from flows.recur.schedule import public_url
from stages.core.errors import UsageError
from stages.decisions import read_chain
from tests.firefox import firefox
from tests.review_samples import make_review
from tests.servers import http_server


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "place").mkdir()
    return make_review(tmp_path / "place", monkeypatch)


@pytest.fixture(params=["chromium", pytest.param("firefox", marks=pytest.mark.slow)])
def go(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[str], str]]:
    """A function that opens an address in a browser, and returns where it ended."""
    if request.param == "chromium":
        page = request.getfixturevalue("browser").new_context().new_page()

        def visit(url: str) -> str:
            page.goto(url)
            page.wait_for_load_state("networkidle")
            return str(page.url)

        yield visit
        page.context.close()
        return
    with firefox(tmp_path / "profile", javascript=True) as fox:

        def go_(url: str) -> str:
            fox.go(url)
            return fox.url

        yield go_


def test_a_browser_that_is_led_to_another_port_brings_nothing_along(place, go):
    def onwards(path: str) -> tuple[int, dict[str, str], bytes]:
        there = {"/": f"http://127.0.0.1:{port}/1", "/1": f"http://localhost:{port}/2"}.get(path)
        return (302, {"Location": there}, b"") if there else (200, {"Content-Type": "text/plain"}, b"")

    with serve_review(["x"], port=0) as server, http_server(onwards) as (port, came):  # somebody else's program
        link = httpx.URL(server.link("x"))
        assert go(str(link)) == f"http://{link.host}:{link.port}/review/x"
        for host in ("127.0.0.1", "localhost"):
            assert go(f"http://{host}:{port}/") == f"http://localhost:{port}/2"
        requests = list(came.queue)
        assert [one.path for one in requests if one.path != "/favicon.ico"] == ["/", "/1", "/2"] * 2
        assert [one.path for one in requests if "faded" in one.headers] == []  # neither cookie nor name
        assert go(f"http://{link.host}:{link.port}/review/x").endswith("/review/x")
        assert server.undecided() == 1  # the session exists, so the browser was signed in


def test_behind_a_proxy_links_lead_to_its_name_and_no_other_name_is_answered(place):
    Path("prefect.yaml").write_text("public_url: https://audits.example.org/\ndeployments: []\n")
    public = public_url()
    assert review_url("x") == "https://audits.example.org/review/x"  # even while no server runs
    with serve_review(["x"], port=0, public=public) as server:
        assert review_url("x") == "https://audits.example.org/review/x"
        link = httpx.URL(server.link("x"))
        assert str(link).startswith("https://audits.example.org/review/x?token=")

        def get(host: str, **headers: str) -> httpx.Response:
            return httpx.get(f"{server.address}{link.raw_path.decode()}", headers={"Host": host, **headers})

        for other in ("127.0.0.1", "localhost", socket.gethostname(), "example.org", "10.0.0.1"):
            assert get(other).status_code == 421
        opened = get("audits.example.org")
        assert opened.status_code == 303 and "Secure" in opened.headers["set-cookie"]
        cookie = opened.headers["set-cookie"].partition(";")[0]
        page = httpx.get(f"{server.address}/review/x", headers={"Host": "audits.example.org", "Cookie": cookie})
        assert page.status_code == 200
    Path("prefect.yaml").write_text("public_url: https://audits.example.org:8443/\ndeployments: []\n")
    assert public_url() == "https://audits.example.org:8443"


WRONG = "a.org ftp://a.org https:// https://a.org/a https://[x https://ada:pw@a.org https://a.org:65536"


def test_what_is_no_address_of_a_proxy_is_refused(place):
    for url in (*WRONG.split(), "https://a.org?a=b", 8711):
        Path("prefect.yaml").write_text(f"public_url: {url}\ndeployments: []\n")
        with pytest.raises(UsageError, match=r"prefect\.yaml: public_url: expected an address like https") as refused:
            public_url()
        assert "pw" not in str(refused.value)


@pytest.mark.slow
def test_a_reviewer_decides_in_firefox_without_javascript(place, tmp_path):
    with serve_review(["x"], port=0) as server, firefox(tmp_path / "profile", javascript=False) as fox:
        fox.go(server.link("x"))
        assert "token" not in fox.url
        for n, action in ((1, "repair"), (2, "ignore"), (3, "accept")):
            fox.click(f"label[for=action-{n}-{action}]")
            fox.click(f"#reason-{n}")
            fox.write(f"seen {n}")
        fox.click("#reason")
        fox.write("for the release")
        fox.click("button[value=approve]")
        while not fox.find("#recorded"):
            assert not fox.find("#problems")
    [made] = read_chain("x")
    said = [(m.action, m.reason) for m in made.decision.modes]
    assert said == [("repair", "seen 1"), ("ignore", "seen 2"), ("accept", "seen 3")]
    assert (made.decision.approve, made.decision.reason) == (True, "for the release")


def reached(server: Served) -> int:
    return int(server.address.rpartition(":")[2])


def test_nobody_else_listens_where_browsers_may_look_for_the_page(place):
    """They resolve a name under localhost to 127.0.0.1 and ::1, and may try either first."""
    try:
        taken = socket.create_server(("::1", 0), family=socket.AF_INET6)
    except OSError as error:
        if error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
            pytest.skip("this machine has no IPv6")
        raise
    with taken:
        number = taken.getsockname()[1]
        with pytest.raises(UsageError, match="cannot listen there"), serve_review(["x"], port=number):
            pass
    with pytest.raises(UsageError, match=r"127\.0\.0\.1 and ::1 alone"), serve_review(["x"], "127.0.0.5"):
        pass
    names = set()
    for given in ("localhost", "::1"):
        with serve_review(["x"], given, 0) as server:
            assert server.address.startswith("http://127.0.0.1:") and reached(server) != PORT
            names.add(httpx.URL(server.link("x")).host)
            for host, family in (("127.0.0.1", socket.AF_INET), ("::1", socket.AF_INET6)):
                with pytest.raises(OSError, match="in use"):
                    socket.create_server((host, reached(server)), family=family)
    # A program that took the port of an ended server could leave a script in its origin, which browsers would run.
    assert len(names) == 2, "each server has a name of its own"
