"""Only the reviewer can reach the review page, and nothing in a model's words or in data can act on it."""

import contextlib
import http.client
import os
import re
import socket
import time
from urllib.parse import quote, urlencode

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flows.people.review import links
from flows.people.review import server as server_module
from flows.people.review.server import serve_review, warning
from flows.people.review.view import report_policy
from flows.server import security
from flows.server.security import PAGE_POLICY, ServerRecord, knows_host, same_origin
from stages.core.errors import UsageError
from tests.cases import scaled
from tests.report_samples import HOSTILE
from tests.review_samples import (
    HOST,
    URL,
    Loopback,
    also_review,
    change_landscape,
    form_of,
    kept,
    make_review,
    reviewers,
)


def follow(link: str) -> httpx.Response:
    with httpx.Client(transport=Loopback()) as client:
        return client.get(link)


def test_a_link_opens_the_page_once_in_one_browser(place):
    ada, eve = reviewers(2)
    link = ada.served.link("x")
    first = ada.client.get(link)
    assert (first.status_code, first.headers["location"]) == (303, "/review/x")
    cookie = first.headers["set-cookie"]
    assert "HttpOnly" in cookie and "SameSite=lax" in cookie and ada.client.get("/review/x").status_code == 200
    second = eve.client.get(link)
    assert second.status_code == 403 and "set-cookie" not in second.headers
    assert "This link was already used" in second.text and "faded review x --link" in second.text
    assert eve.client.get("/review/x").status_code == 403
    assert ada.client.get(link).status_code == 303  # a signed-in browser keeps its session


def test_a_link_that_is_old_or_made_up_opens_nothing(ada, monkeypatch):
    monkeypatch.setattr(security, "LINK_SECONDS", -1)
    assert ada.client.get(ada.served.link("x")).status_code == 403
    for token in ("", "x", "é", "../../etc", "a" * 5000):
        assert ada.client.get("/review/x", params={"token": token}).status_code == 403


def test_a_browser_sees_the_audits_of_its_links_alone(ada):
    also_review()
    fields = form_of(ada.enter()) | {"decision": "approve"}
    ada.served.link("other")
    for answer in (ada.client.get("/review/other"), ada.client.get("/review/other/landscape"),
                   ada.send(fields, "other")):  # fmt: skip
        assert answer.status_code == 403 and "faded review other --link" in answer.text
    token = ada.served.link("x").partition("token=")[2]
    assert ada.client.get("/review/other", params={"token": token}).status_code == 403
    assert "/review/other" not in ada.client.get("/").text and kept("other") == []
    assert form_of(ada.enter("other"))["csrf"] == fields["csrf"]  # the open form stays valid
    assert "/review/other" in ada.client.get("/").text and ada.client.get("/review/x").status_code == 200


def test_one_link_opens_the_page_of_all_audits_and_theirs(ada):
    also_review()
    link = ada.served.link(security.EVERY)
    ada.served.audits.append("other")
    assert ada.client.get("/review/x", params={"token": link.partition("token=")[2]}).status_code == 403
    opened = ada.client.get(link)
    assert (opened.status_code, opened.headers["location"]) == (303, "/")
    page = ada.client.get("/").text
    assert "/review/x" in page and "/review/other" in page and ada.client.get("/review/other").status_code == 200
    ada.client.cookies.clear()
    assert ada.client.get(link).status_code == 403


def test_without_a_session_nothing_is_shown_or_written(place):
    ada, eve = reviewers(2)
    fields = form_of(ada.enter()) | {"decision": "approve"}
    for cookies in ({}, {"faded-review-8711": "made up"}):
        eve.client.cookies.clear()
        eve.client.cookies.update(cookies)
        for path in ("/", "/review/x", "/review/x/landscape"):
            answer = eve.client.get(path)
            assert answer.status_code == 403 and "--link" in answer.text
            assert "M1" not in answer.text and "whole landscape" not in answer.text
        assert eve.send(fields).status_code == 403
    assert kept() == []


def test_a_name_that_only_resolves_to_us_is_refused(ada):
    ada.enter()
    for host in ("evil.example:8711", "127.0.0.1.evil.example", "", "10.0.0.1", "["):
        answer = ada.client.get("/review/x", headers={"Host": host})
        assert answer.status_code == 421 and "M1" not in answer.text


def test_a_name_that_every_port_shares_shows_nothing_but_how_to_get_a_link(ada):
    fields = form_of(ada.enter()) | {"decision": "approve"}
    ada.client.headers["Cookie"] = "; ".join(f"{k}={v}" for k, v in ada.client.cookies.items())
    link = ada.served.link("x").removeprefix(URL)
    for host in ("127.0.0.1:8711", "localhost:9000", "[::1]:8711"):
        for answer in (
            *(ada.client.get(path, headers={"Host": host}) for path in ("/", "/review/x", "/static/review.css", link)),
            ada.send(fields, Host=host, Origin=f"http://{host}"),
        ):
            assert answer.status_code == 421 and "faded review AUDIT --link" in answer.text
            assert "set-cookie" not in answer.headers and HOST not in answer.text + str(answer.headers)
        assert ada.client.get("/links", headers={"Host": host}).status_code == 404
    assert kept() == []
    assert ada.client.get(link).status_code == 303  # it was not used up


def test_who_listens_on_the_network_answers_to_addresses_and_its_own_name():
    assert knows_host("192.168.0.7:8711", "0.0.0.0") and knows_host("audits.lan", "audits.lan")
    assert not knows_host("evil.example", "0.0.0.0") and not knows_host("evil.example", "audits.lan")
    assert not knows_host("192.168.0.7", HOST) and not knows_host(f"x.{HOST}", HOST)
    assert knows_host(f"{HOST}:9000", HOST)  # any port, as through a tunnel
    assert warning("127.0.0.1") is None and warning("localhost") is None
    assert "its one-time link is all that protects it" in str(warning("0.0.0.0"))


OTHERS = ("http://evil.example", "null", f"http://{HOST}:8712", "http://127.0.0.1:8711", "http://localhost:8711")


def test_a_form_of_another_page_is_refused(ada):
    sent = form_of(ada.enter()) | {"decision": "approve", "reason": "typed this"}
    for origin in (*OTHERS, "", f"file://{HOST}:8711", "http://["):
        answer = ada.send(sent, Origin=origin, Referer=f"{URL}/review/x")
        assert answer.status_code == 403 and "did not come from this page" in answer.text
        assert "typed this" in answer.text and kept() == []
    ours = {"host": f"{HOST}:8711", "referer": f"{URL}/review/x"}
    assert same_origin(ours) and same_origin(ours | {"origin": URL})  # without an origin, the referrer counts
    assert not same_origin({"host": ours["host"]})
    assert not same_origin(ours | {"referer": f"http://evil.example/{HOST}"})


def test_a_form_needs_the_secret_of_its_own_session(place):
    ada, eve = reviewers(2)
    other = form_of(eve.enter())["csrf"]
    fields = form_of(ada.enter()) | {"decision": "approve"}
    for csrf in ("", "made up", "é", other):
        assert ada.send(fields | {"csrf": csrf}).status_code == 403
    assert ada.send({name: value for name, value in fields.items() if name != "csrf"}).status_code == 403
    assert kept() == [] and ada.send(fields).status_code == 200


def test_every_answer_tells_the_browser_to_be_strict(ada):
    html = ada.enter()
    paths = ["/", "/review/x", "/review/x/landscape", "/nothing", "/static/review.css", "/static/review.js"]
    for answer in [*(ada.client.get(path) for path in paths), ada.send({"decision": "approve"})]:
        policy = answer.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'") and "frame-ancestors 'none'" in policy
        assert "http:" not in policy and "*" not in policy and "unsafe-eval" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff" and answer.headers["cache-control"] == "no-store"
        assert answer.headers["referrer-policy"] == "same-origin"
    assert "unsafe-inline" not in PAGE_POLICY and "data:" not in PAGE_POLICY.replace("img-src data:", "")
    assert re.findall(r"""\s(?:href|src|action|formaction)=(?!["'](?:/|#|data:))\S*""", html) == []
    assert HOST not in html  # nor is the name revealed otherwise, as a page's text may be copied
    assert not re.findall(r"<style|\sstyle=|\son\w+=|<script>|javascript:", html)


ELSEWHERE = (
    "/review/other", "/review/other/landscape", "/review/none", "/review/x/plan.json", "/review/x/exhibits.parquet",
    "/review/x/repair", "/review/x/..%2f..%2f..%2fparams.yaml", "/review/..%2fx", "/review/%2e%2e/params.yaml",
    "/review/x/../../../params.yaml", "/static/..%2freview.html.j2", "/static/../app.py", "/static/review.html.j2",
    "/params.yaml", "/../params.yaml", "/docs", "/openapi.json", "/review/x/landscape/report.html", "/review/x%00",
    "/data/x/report/report.html", "//review/x", "/review//x", "/review/x/landscape%00", "/links", "/favicon.ico",
)  # fmt: skip


def test_nothing_but_its_audits_and_their_reports_is_served(place):
    """Through a socket, as clients normalize addresses before they send them."""
    with serve_review(["x"], port=0) as server:
        link = httpx.URL(server.link("x"))
        session = follow(str(link)).headers["set-cookie"].partition(";")[0]

        def get(path: str) -> tuple[int, str]:
            connection = http.client.HTTPConnection("127.0.0.1", link.port, timeout=30)
            connection.request("GET", path, headers={"Cookie": session, "Host": link.host})
            answer = connection.getresponse()
            return answer.status, answer.read().decode()

        assert [get(path)[0] for path in ("/", "/review/x", "/review/x/landscape", "/static/review.css")] == [200] * 4
        for path in ELSEWHERE:
            status, text = get(path)
            assert (path, status) == (path, 404) and "PlantedTask" not in text and "whole landscape" not in text


def test_a_report_keeps_its_own_policy_and_acts_for_nobody(ada):
    ada.enter()
    answer = ada.client.get("/review/x/landscape")
    assert "the whole landscape" in answer.text
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; style-src 'unsafe-inline'; ")
    assert "sandbox" in policy and "allow-same-origin" not in policy
    assert "script-src" not in report_policy("<html>a report without a policy")


@pytest.mark.parametrize("kind", ["texts", "pictures"])
def test_what_models_and_data_say_is_shown_as_text(tmp_path, monkeypatch, kind):
    make_review(tmp_path, monkeypatch, kind, hostile=True)
    [ada] = reviewers()
    html = ada.enter()
    shown = "&lt;script&gt;alert(1)&lt;/script&gt;"
    assert html.count(shown) > 12 and HOSTILE not in html
    assert html.count("<script") == html.count("</script>") == 2, "ours, and the rows of examples"


def test_what_a_reviewer_types_comes_back_as_text(ada):
    fields = form_of(ada.enter()) | {"reason": HOSTILE, "reviewer": f'"{HOSTILE}', "reason.M1": f"</textarea>{HOSTILE}"}
    for more, status in (({}, 400), ({"landscape": "0" * 16}, 409), ({"decision": "reject"}, 200)):
        answer = ada.send(fields | more)
        assert answer.status_code == status and HOSTILE not in answer.text and "&lt;script&gt;" in answer.text
    change_landscape()
    assert HOSTILE not in ada.send(fields).text


def test_links_are_given_to_who_knows_the_secret_alone(ada):
    ada.enter()
    secret = ada.served.keys.secret
    for authorization in ("", "Bearer", "Bearer wrong", f"Basic {secret}", secret, f"Bearer {secret}x"):
        given = {"Authorization": authorization}
        for answer in (ada.client.post("/links?audit=x", headers=given), ada.client.get("/links", headers=given)):
            assert answer.status_code == 404 and "token" not in answer.text
    known = {"Authorization": f"Bearer {secret}"}
    assert "token=" in ada.client.post("/links?audit=x", headers=known).json()["link"]
    assert ada.client.post("/links?audit=none", headers=known).status_code == 409
    assert ada.client.get("/links", headers=known).json() == {"audits": ["x"]}


def test_who_may_not_is_told_so_before_anything_is_read(place):
    with serve_review(["x"], port=0) as server:
        link = httpx.URL(server.link("x"))
        for path, status in (("/links?audit=x", 404), ("/review/x", 403)):
            with socket.create_connection(("127.0.0.1", link.port), timeout=30) as connection:
                head = f"POST {path} HTTP/1.1\r\nHost: {link.host}\r\nContent-Type: application/json\r\n"
                connection.sendall(f"{head}Content-Length: 300000000\r\n\r\n".encode())
                assert connection.recv(12) == b"HTTP/1.1 %d" % status


@pytest.mark.parametrize(
    "sent",
    ["POST /rev", "POST /review/x HTTP/1.1\r\nHost: {host}\r\nCookie: {cookie}\r\nContent-Length: 9000\r\n\r\ncsrf="],
)
def test_requests_that_never_become_whole_end_and_keep_nobody_out(place, monkeypatch, capfd, sent):
    monkeypatch.setattr(server_module, "REQUEST_SECONDS", 1.0)
    monkeypatch.setattr(server_module, "MAX_WAITING", 20)
    with serve_review(["x"], port=0) as server, contextlib.ExitStack() as stack:
        link = httpx.URL(server.link("x"))
        client = stack.enter_context(httpx.Client(transport=Loopback(), follow_redirects=True, timeout=30))
        cookie = client.get(link).history[0].headers["set-cookie"].partition(";")[0]
        half = [stack.enter_context(socket.create_connection(("127.0.0.1", link.port), timeout=30)) for _ in range(60)]
        for one in half:
            one.sendall(sent.format(host=link.host, cookie=cookie).encode())
        page = client.get(link.copy_with(path="/review/x", query=None))
        fields, origin = form_of(page.text) | {"decision": "reject"}, str(page.url.join("/"))[:-1]
        answer = client.post(page.url, data=fields, headers={"Origin": origin})
        assert page.status_code == 200 and answer.status_code in (200, 400)
        for one in half:  # closed by the server, not by this end's time-out
            with contextlib.suppress(ConnectionResetError):
                while one.recv(65536):
                    pass
    assert capfd.readouterr().err == ""


WORDS = st.text(max_size=30) | st.sampled_from(
    ["x", "M1", "approve", "repair", "review", "landscape", "static", "..", "\0"]
)
NAMES = WORDS | st.sampled_from(
    ["csrf", "landscape", "seen", "decision", "reviewer", "action.M1", "severity.M1", "bias.M1.1"]
)
HEADERS = st.sampled_from(
    ["Host", "Origin", "Referer", "Cookie", "Authorization", "Content-Type", "Content-Length", "X-Forwarded-Host"]
)


@settings(deadline=None, max_examples=scaled(40), suppress_health_check=[*HealthCheck])
@given(data=st.data())
def test_no_request_at_all_brings_an_error_of_the_server(ada, data):
    """As a signed-in browser, whose requests get further than others."""
    known = form_of(ada.client.get("/review/x").text) or form_of(ada.enter())
    path = "/" + "/".join(quote(part, safe="") for part in data.draw(st.lists(WORDS, max_size=4), "path"))
    path = data.draw(st.sampled_from([path, "/", "/review/x", "/review/x/landscape", "/links", "/static/review.js"]))
    fields = {name: value for name, value in known.items() if data.draw(st.integers(0, 9)) > 0}
    fields |= data.draw(st.dictionaries(NAMES, WORDS | st.none().map(lambda _: "9" * 400), max_size=5), "fields")
    body = data.draw(st.just(urlencode(fields, errors="replace").encode()) | st.binary(max_size=200), "body")
    headers = {"Origin": URL, "Content-Type": "application/x-www-form-urlencoded"}
    values = st.binary(max_size=40).map(lambda b: b.decode("latin-1"))
    headers |= data.draw(st.dictionaries(HEADERS, values, max_size=2))
    method = data.draw(st.sampled_from(["POST", "GET", "HEAD", "PUT", "OPTIONS", "DELETE"]), "method")
    asked = data.draw(st.dictionaries(st.sampled_from(["token", "again", "audit"]), WORDS, max_size=2))
    path, sent = f"{path}?{urlencode(asked, errors='replace')}", {k: v.encode("latin-1") for k, v in headers.items()}
    answer = ada.client.request(method, path, content=body, headers=sent)
    assert answer.status_code < 500


def test_a_file_that_leads_to_a_link_is_the_users_alone(place):
    for link in (f"{URL}/review/x?token=a&again=yes", f"{URL}/review/x?token=b"):
        path = links.write_way_in("x", link)
        assert path.stat().st_mode & 0o777 == 0o600 and link.replace("&", "&amp;") in path.read_text()
    assert [p.name for p in path.parent.iterdir()] == ["review-x.html"]


def test_the_record_of_the_server_is_the_users_alone_and_goes_with_it(place):
    with serve_review(["x"], port=0) as server:
        assert links.RECORD.stat().st_mode & 0o777 == 0o600
        record = links.running()
        assert record is not None and record.pid == os.getpid() and record.url == server.address
        assert links.review_url("x") == f"{server.address}/review/x" and links.review_url("other") is None
        link = links.one_time_link("x")
        assert record.secret not in link and follow(link).status_code == 303 and follow(link).status_code == 403
        host = httpx.URL(link).host
        assert "token" not in str(links.review_url("x")) and host not in f"{links.review_url('x')} {record}"
        assert re.fullmatch(rf"http://{host}:\d+/review/other\?token=\S+", links.one_time_link("other"))
        assert links.review_url("other") is not None
    assert not links.RECORD.exists() and links.running() is None
    record.write(links.RECORD)  # as a kill would leave it
    assert links.running() is None and links.review_url("x") is None
    with pytest.raises(UsageError, match="no review server runs"):
        links.one_time_link("x")


def test_another_servers_record_is_left_alone(place):
    with serve_review(["x"], port=0) as server:
        other = ServerRecord(url="http://127.0.0.1:1", pid=1, started=1.0, secret="s")
        other.write(links.RECORD)
        with pytest.raises(UsageError, match=r"--port \d+: cannot listen there"):  # it is taken
            serve_review(["x"], port=int(server.address.rpartition(":")[2])).__enter__()
    assert ServerRecord.model_validate_json(links.RECORD.read_text()) == other


def test_a_browser_that_asked_for_nothing_has_to_come_in_anew(ada):
    fields = form_of(ada.enter()) | {"decision": "approve"}
    [session] = ada.served.keys._sessions.values()
    for _ in range(2):
        session.used = time.monotonic() - security.IDLE_SECONDS + 60
        assert ada.client.get("/review/x").status_code == 200
    session.used = time.monotonic() - security.IDLE_SECONDS
    assert ada.send(fields).status_code == ada.client.get("/review/x").status_code == 403
    assert ada.served.keys.undecided(["x"]) == 0 and kept() == [] and form_of(ada.enter())["csrf"] != fields["csrf"]


def test_a_form_that_is_too_large_is_refused(ada):
    fields = form_of(ada.enter()) | {"decision": "approve", "reason": "x" * 1_000_001}
    assert ada.send(fields).status_code == 413 and kept() == []
