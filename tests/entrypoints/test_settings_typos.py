"""Misspelt settings are reported; unrelated variables are not."""

from __future__ import annotations

import pytest

from entrypoints.settings import Settings, settings_typos

POD = """
PATH HOME HOSTNAME LANG PYTHONPATH LD_LIBRARY_PATH TMPDIR XDG_CACHE_HOME OMP_NUM_THREADS
NVIDIA_VISIBLE_DEVICES CUDA_VISIBLE_DEVICES CUDA_DEVICE_ORDER NCCL_DEBUG PYTORCH_CUDA_ALLOC_CONF
TRITON_CACHE_DIR HF_HOME HF_TOKEN HF_HUB_OFFLINE HTTPS_PROXY NO_PROXY SSL_CERT_FILE STATSD_PORT
STATSD_HOST KUBERNETES_SERVICE_HOST KUBERNETES_PORT_443_TCP POD_NAME POD_NAMESPACE NODE_NAME
RABBITMQ_SERVICE_HOST RABBITMQ_SERVICE_PORT RABBITMQ_PORT_5672_TCP RABBITMQ_PORT_5672_TCP_ADDR
RUNPOD_POD_ID RUNPOD_GPU_COUNT RUNPOD_TCP_PORT_22 RUNPOD_PUBLIC_IP PUBLIC_KEY JUPYTER_PASSWORD
AWS_REGION AWS_DEFAULT_REGION AWS_PROFILE AWS_ROLE_ARN AWS_ROLE_SESSION_NAME AWS_CA_BUNDLE
AWS_WEB_IDENTITY_TOKEN_FILE AWS_CONTAINER_CREDENTIALS_FULL_URI AWS_CONTAINER_AUTHORIZATION_TOKEN
AWS_ENDPOINT_URL AWS_ENDPOINT_URL_S3 AWS_SECURITY_TOKEN AWS_MAX_ATTEMPTS
"""
COMPOSE = """
RABBITMQ_DEFAULT_USER RABBITMQ_DEFAULT_PASS RABBITMQ_DEFAULT_VHOST RABBITMQ_ERLANG_COOKIE
RABBITMQ_NODE_PORT RABBITMQ_LOGS RABBITMQ_MANAGEMENT_PORT MINIO_ROOT_USER MINIO_ROOT_PASSWORD
POSTGRES_PASSWORD DATABASE_URL REDIS_HOST REDIS_PORT DJANGO_SECRET_KEY DEBUG ALLOWED_HOSTS
FRONTEND_URL VITE_API_URL SENTRY_ENVIRONMENT EMAIL_HOST EMAIL_HOST_PASSWORD COMPOSE_PROJECT_NAME
AWS_QUERYSTRING_AUTH AWS_S3_CUSTOM_DOMAIN AWS_S3_FILE_OVERWRITE LOG_FILE MODEL_PATH PORT
"""


def test_environment_variables_of_kubernetes_and_tools_are_no_misspelt_settings() -> None:
    names = f"{POD} {COMPOSE}".lower().split()
    assert settings_typos(dict.fromkeys(names, "x")) == []


@pytest.mark.parametrize(
    ("name", "setting"),
    [
        ("RABITMQ_HOST", "RABBITMQ_HOST"),
        ("rabbitmq_hsot", "RABBITMQ_HOST"),
        ("RABBITMQ_PASSWRD", "RABBITMQ_PASS"),
        ("RABBITMQ_USERNAME", "RABBITMQ_USER"),
        ("AWS_ACCESS_KEY", "AWS_ACCESS_KEY_ID"),
        ("AWS_STORAGE_BUCKET", "AWS_STORAGE_BUCKET_NAME"),
        ("AWS_S3_ENDPOINT_URL", "S3_ENDPOINT_URL"),
        ("BASEMODEL", "BASE_MODEL"),
        ("KEEP_CHECKPOINT", "KEEP_CHECKPOINTS"),
    ],
)
def test_a_misspelt_setting_is_found_with_the_intended_one(name: str, setting: str) -> None:
    (line,) = settings_typos({name.lower(): "x"})
    assert line == f"{name.upper()} is not a setting: did you mean {setting}?"


def test_no_setting_is_taken_for_a_misspelling_of_another() -> None:
    for name in Settings.model_fields:
        assert settings_typos({name: "x"}) == []


def test_a_similar_name_is_ignored_where_the_setting_is_given_too() -> None:
    given = {"rabbitmq_passwrd": "x", "rabbitmq_pass": "x", "rabbitmq_hostname": ""}
    assert settings_typos(given) == []
