"""What a command says while Ray starts."""

from types import SimpleNamespace

import pytest

from raycrt.distributed import preflight, session


@pytest.mark.parametrize("address", [None, "10.0.0.1:6379"])
def test_a_ray_that_starts_is_announced_on_standard_error(address, monkeypatch, capsys):
    running = SimpleNamespace(is_initialized=lambda: False, shutdown=lambda: None)
    monkeypatch.setattr(session, "ray", running)
    monkeypatch.setattr(session, "_init", lambda **options: None)
    for check in ("check_address", "check_node", "check_machine", "keep_token_private"):
        monkeypatch.setattr(preflight, check, lambda *given: None)
    monkeypatch.setenv("RAY_ADDRESS", address or "")
    with session.session():
        said = capsys.readouterr()
        wanted = f"joining Ray at {address} ..." if address else "starting Ray"
        assert said.err.startswith(wanted) and len(said.err.splitlines()) == 1
        assert said.out == ""
        running.is_initialized = lambda: True
        with session.session():
            assert capsys.readouterr().err == ""
