import os
from pathlib import Path

import pytest

from infra.settings import Settings, settings_from
from schemas.errors import FolioError


def test_an_empty_environment_gives_the_defaults():
    assert settings_from({"FOLIO_THREADS": "", "RAY_ADDRESS": ""}) == Settings(
        threads=min(os.cpu_count() or 1, 8), log_level="warning", ray_address=None, prefect_api_url=None, s3_endpoint_url=None
    )


def test_the_environment_of_the_process_is_read(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("FOLIO_THREADS", "3")
    monkeypatch.setenv("FOLIO_LOG", "debug")
    monkeypatch.setenv("RAY_ADDRESS", "ray://head:10001")
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:4200/api")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9000")
    monkeypatch.setenv("FOLIO_MODELS", "/srv/models")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:8080/")
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3", raising=False)

    assert Settings.from_environment() == Settings(
        threads=3,
        log_level="debug",
        ray_address="ray://head:10001",
        prefect_api_url="http://127.0.0.1:4200/api",
        s3_endpoint_url="http://127.0.0.1:9000",
        models=Path("/srv/models"),
        hub="http://127.0.0.1:8080",
    )


def test_weights_are_kept_where_a_users_data_is():
    assert settings_from({}).models == Path.home() / ".local/share/folio/models"
    assert settings_from({"XDG_DATA_HOME": "/data"}).models == Path("/data/folio/models")
    assert settings_from({"FOLIO_MODELS": "~/weights"}).models == Path.home() / "weights"


def test_the_endpoint_for_s3_goes_before_the_general_one():
    settings = settings_from({"AWS_ENDPOINT_URL": "http://general", "AWS_ENDPOINT_URL_S3": "http://s3"})

    assert settings.s3_endpoint_url == "http://s3"


@pytest.mark.parametrize("name", ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"])
@pytest.mark.parametrize(
    "url",
    ["http://me:hidden@s3:9000", "https://hidden@s3", "http://s3/?token=hidden", "http://s3#hidden", "s3:9000/hidden", "http://"],
)
def test_an_endpoint_that_holds_a_secret_or_is_none_is_refused_and_not_repeated(name: str, url: str):
    with pytest.raises(FolioError, match=f"{name}.*needed http://host:port.*AWS_PROFILE") as caught:
        settings_from({name: url})

    assert "hidden" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [("FOLIO_THREADS", "0"), ("FOLIO_THREADS", "many"), ("FOLIO_THREADS", "-1"), ("FOLIO_LOG", "loud"), ("HF_ENDPOINT", "hub")],
)
def test_a_value_that_cannot_be_is_refused(name: str, value: str):
    with pytest.raises(FolioError, match=f"{name}: found '{value}', needed .*Nothing was started"):
        settings_from({name: value})
