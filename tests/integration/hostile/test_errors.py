"""Nginx's errors when vLLM is absent, silent or breaks off: the official client's own exceptions."""

from collections.abc import Iterator

import openai
import pytest

from tests.conftest import LIMITS
from tests.integration.conftest import log_once
from tests.integration.hostile import twin
from tests.integration.hostile.test_limits import ask, client, refused
from tests.integration.hostile.twin import CURRENT, Twin
from tests.support.made_stacks import NGINX_IMAGE


def impatient(conf: str) -> str:
    """Return the configuration with one second where the program has ten minutes."""
    assert "proxy_read_timeout 600s;" in conf
    return conf.replace("proxy_read_timeout 600s;", "proxy_read_timeout 1s;")


@pytest.fixture
def nginx(machine: None) -> Iterator[Twin]:
    with twin.serving(NGINX_IMAGE, LIMITS, impatient) as serving:
        yield serving


def test_a_model_that_does_not_answer_in_time_is_504(nginx: Twin) -> None:
    nginx.recorder.silent_seconds = 3
    with pytest.raises(openai.InternalServerError) as raised:
        ask(client(nginx))
    nginx.recorder.silent_seconds = 0
    assert raised.value.status_code == 504
    assert refused(raised.value, "model_timeout", "did not answer in time")


@pytest.mark.parametrize("how", ["no socket", "nobody behind the socket"])
def test_a_model_that_is_not_there_is_503_and_may_be_loading(nginx: Twin, how: str) -> None:
    with nginx.absent(socket=how != "no socket"):
        with pytest.raises(openai.InternalServerError) as raised:
            ask(client(nginx))
        assert raised.value.status_code == 503
        assert refused(raised.value, "model_unavailable", "not ready", "loading")
    assert ask(client(nginx))


def test_a_failing_model_puts_no_query_into_the_log(nginx: Twin) -> None:
    for there in (False, True):
        with nginx.absent(socket=there):
            with pytest.raises(openai.InternalServerError):
                ask(client(nginx), extra_query={"api_key": CURRENT})
            with pytest.raises(openai.InternalServerError):
                client(nginx).models.list(extra_query={"api_key": CURRENT})
    log = log_once(nginx.container, lambda log: log.count(" 503 ") >= 4)
    assert log.count(" 503 ") == 4
    assert CURRENT not in log


def test_a_model_that_breaks_off_before_it_answers_is_503(nginx: Twin) -> None:
    nginx.recorder.breaks_off = True
    with pytest.raises(openai.InternalServerError) as raised:
        ask(client(nginx))
    nginx.recorder.breaks_off = False
    assert raised.value.status_code == 503
    assert refused(raised.value, "model_unavailable")
