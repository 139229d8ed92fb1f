"""The HTTP client against a server in a thread that fails as servers do."""

import contextlib

import pytest
from completion_server import completion_server

from jaxlab.errors import InputError, ResourceError
from jaxlab.recipes.phylolm_endpoint import Client, Endpoint, is_endpoint, parse_endpoint


@pytest.fixture
def server():
    with completion_server() as held:
        yield held


@contextlib.contextmanager
def opened(server, **options):
    waits = []
    time = [0.0]

    def sleep(seconds):
        waits.append(seconds)
        time[0] += seconds

    with Client(Endpoint(server.url, "m", **options), clock=lambda: time[0], sleep=sleep) as client:
        yield client, waits


def ask(client, probes=3):
    return client.complete("def f(", probes=probes, tokens=5, temperature=0.7)


def test_a_request_says_what_is_wanted_and_who_asks(server, monkeypatch):
    monkeypatch.setenv("MY_KEY", "secret")
    with opened(server, key_variable="MY_KEY") as (client, waits):
        assert ask(client) == ["1.0", "1.1", "1.2"]
    ((path, body, key),) = server.requests
    assert path == "/v1/completions" and key == "Bearer secret" and not waits
    assert body == {
        "model": "m",
        "n": 3,
        "max_tokens": 5,
        "temperature": 0.7,
        "top_p": 1.0,
        "prompt": "def f(",
    }


def test_a_chat_model_gets_the_gene_as_a_message(server, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with opened(server, chat=True) as (client, _):
        assert ask(client) == ["1.0", "1.1", "1.2"]
    ((path, body, key),) = server.requests
    assert path == "/v1/chat/completions" and key is None
    assert body["messages"][-1] == {"role": "user", "content": "def f("}


def test_a_server_that_gives_fewer_is_asked_for_the_rest(server):
    server.at_a_time = 2
    with opened(server) as (client, _):
        assert ask(client, probes=5) == ["1.0", "1.1", "2.0", "2.1", "3.0"]
    assert [body["n"] for _, body, _ in server.requests] == [5, 3, 1]


def test_passing_failures_are_tried_again_with_longer_and_longer_waits(server):
    server.replies = [
        500,
        503,
        (429, {"Retry-After": "7"}, "slow down"),
        (200, {}, "not json"),
        (200, {}, "{}"),
    ]
    with opened(server) as (client, waits):
        assert ask(client) == ["6.0", "6.1", "6.2"]
    assert waits == [0.5, 1, 7, 4, 8]


def test_after_so_many_tries_it_gives_up_and_says_why(server):
    server.replies = [500] * 9
    with opened(server, tries=3) as (client, waits):
        with pytest.raises(
            ResourceError, match="failed 3 times for 'm', at last with HTTP 500: no.*--resume"
        ):
            ask(client)
    assert len(server.requests) == 3 and len(waits) == 2


def test_a_refusal_is_not_tried_again(server):
    server.replies = [(401, {}, "wrong key")]
    with opened(server) as (client, waits):
        with pytest.raises(ResourceError, match="refused the request for 'm' .HTTP 401: wrong key"):
            ask(client)
    assert len(server.requests) == 1 and not waits


def test_a_server_that_is_not_there_is_a_failure_like_any_other(server):
    server.shutdown()
    server.server_close()
    with opened(server, tries=2) as (client, waits):
        with pytest.raises(ResourceError, match="failed 2 times for 'm', at last with ConnectError"):
            ask(client)
    assert waits == [0.5]


def test_requests_keep_their_distance(server):
    server.at_a_time = 1
    with opened(server, per_second=4.0) as (client, waits):
        ask(client, probes=3)
    assert waits == pytest.approx([0.25, 0.25])


def test_sources_are_urls_with_the_name_of_a_model():
    endpoint = parse_endpoint("chat+https://host/v1/#org/model", tries=2)
    assert (endpoint.url, endpoint.model, endpoint.chat, endpoint.tries) == (
        "https://host/v1",
        "org/model",
        True,
        2,
    )
    assert not parse_endpoint("http://host/v1#m").chat
    assert is_endpoint("chat+http://x") and is_endpoint("https://x") and not is_endpoint("pkg:smollm2")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: parse_endpoint("http://host/v1"), "must be http://HOST/v1#MODEL"),
        (lambda: Endpoint("ftp://host", "m"), "must be http://HOST/v1#MODEL"),
        (lambda: Endpoint("http://host", "m", tries=0), "tries is 0; it must be at least 1"),
        (
            lambda: Endpoint("http://host", "m", per_second=-1.0),
            "per_second is -1.0; it must not be negative",
        ),
        (lambda: Endpoint("http://host", "m", timeout=0.0), "timeout is 0.0; it must be above 0"),
    ],
)
def test_what_is_no_endpoint_is_refused(call, message):
    with pytest.raises(InputError, match=message):
        call()
