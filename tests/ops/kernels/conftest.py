"""A GPU for tests of its kernels: an emulator, or with --gpu the card that is here."""

import pytest

from tests.ops.kernels.card import Card
from tests.ops.kernels.stand_in import StandIn


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("emulated")


@pytest.fixture
def card(folder, request):
    """What plays the GPU, to be installed."""
    card = (Card if request.config.getoption("--gpu") else StandIn)(folder)
    yield card
    card.forget()


@pytest.fixture
def gpu(card, monkeypatch):
    card.install(monkeypatch)
    return card
