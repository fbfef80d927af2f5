# syntax=docker/dockerfile:1.9
#
# The worker's image. Variants by build argument:
#
#   docker build -t style-trainer:cpu .
#   docker build -t style-trainer:cuda --build-arg VARIANT=cuda .
#
# and the base model in /models/base, by `--build-arg MODEL=`:
#
#   mounted   the default: mount a diffusers folder there; without one the worker does not start
#   hub       downloaded by the build: BASE_MODEL_HUB, BASE_MODEL_REVISION
#   folder    copied from this machine: --build-context base-model=FOLDER
#   small     the small base, for trying
#
# Both variants use the same small base image: torch's wheels contain the CUDA runtime, and the
# container toolkit mounts the driver.

# Stages are named without variables, which builders other than BuildKit do not resolve; podman and
# buildah build this file, too.
ARG PYTHON_IMAGE=python:3.11.14-slim-bookworm

# --- Python packages, with their hashes in the lock files; only torch differs by variant ---
FROM ${PYTHON_IMAGE} AS packages
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
ENV PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH
WORKDIR /build
COPY constraints.txt requirements.lock requirements-cuda.lock ./
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install --require-hashes --no-deps -r requirements.lock
# The largest layer, and the only one in which the variants differ: torch and CUDA's libraries. torch
# from another index than PyPI is installed without hashes, since every index has other wheels. The
# CPU variant requires the local version +cpu, so that no index can supply the CUDA build.
ARG VARIANT=cpu
ARG TORCH_CPU_INDEX=https://download.pytorch.org/whl/cpu
# Hosts with an older driver: --build-arg TORCH_CUDA_INDEX=https://download.pytorch.org/whl/cu126
ARG TORCH_CUDA_INDEX=""
RUN --mount=type=cache,target=/root/.cache/pip \
    case "$VARIANT" in \
        cpu) index=$TORCH_CPU_INDEX local=+cpu ;; \
        cuda) index=$TORCH_CUDA_INDEX local= ;; \
        *) echo "VARIANT=$VARIANT: give cpu or cuda" >&2; exit 1 ;; \
    esac \
    && if [ "$VARIANT$index" = cuda ]; then \
        pip install --require-hashes --no-deps -r requirements-cuda.lock; \
    else \
        sed -n "s/^torch==.*/&$local/p" constraints.txt > torch.txt \
        && pip install --index-url "$index" -r torch.txt; \
    fi
# Packages beyond the lock file: bitsandbytes, for 8-bit AdamW on a GPU.
ARG EXTRAS=""
# hadolint ignore=SC2086
RUN --mount=type=cache,target=/root/.cache/pip \
    if [ -n "$EXTRAS" ]; then pip install -c constraints.txt $EXTRAS; fi

# --- Our own code --------------------------------------------------------------------------
FROM packages AS code
COPY README.md pyproject.toml ./
COPY domain domain
COPY application application
COPY adapters adapters
COPY entrypoints entrypoints
COPY assets assets
RUN --mount=type=cache,target=/root/.cache/pip pip install --no-deps --no-build-isolation --target /opt/code .

# --- The base model ------------------------------------------------------------------------
FROM ${PYTHON_IMAGE} AS base-model
# `--build-context base-model=FOLDER` replaces this stage.
RUN mkdir /none

FROM packages AS model
ARG MODEL=mounted
ARG BASE_MODEL_HUB=stable-diffusion-v1-5/stable-diffusion-v1-5
# A commit, so that every build has the same weights.
ARG BASE_MODEL_REVISION=451f4fe16113bff5a5d2269ed5ad43b0592e9a14
COPY assets/small_base small_base
# A private model's token is mounted for this step and is in no layer:
#   --secret id=hf_token,env=HF_TOKEN
RUN --mount=type=bind,from=base-model,target=/base-model \
    --mount=type=secret,id=hf_token,required=false \
    mkdir -p /models/base && case "$MODEL" in \
        mounted) ;; \
        small) cp -r small_base/. /models/base ;; \
        folder) cp -r /base-model/. /models/base && test -f /models/base/model_index.json ;; \
        hub) HF_TOKEN="$(cat /run/secrets/hf_token 2>/dev/null || true)" \
            python -c "import sys; from huggingface_hub import snapshot_download; \
snapshot_download(sys.argv[1], revision=sys.argv[2], local_dir='/models/base', \
allow_patterns=['*.json', '*.txt', '*.safetensors'], \
ignore_patterns=['*/*.fp16.*', '*/*.non_ema.*', 'v1-5*', 'safety_checker/*'])" \
            "$BASE_MODEL_HUB" "$BASE_MODEL_REVISION" && rm -rf /models/base/.cache ;; \
        *) echo "MODEL=$MODEL: give mounted, small, folder or hub" >&2; exit 1 ;; \
    esac

# --- The image -----------------------------------------------------------------------------
FROM ${PYTHON_IMAGE} AS worker
ARG VARIANT=cpu
# tini is process 1 and forwards signals: the kernel ignores a signal without a handler to process 1,
# so a second SIGTERM would not end Python there.
# On a GPU, Triton compiles kernels and their C launchers at run time.
# hadolint ignore=DL3008,SC2046
RUN apt-get update \
    && apt-get install --yes --no-install-recommends tini \
        $(if [ "$VARIANT" = cuda ]; then echo gcc libc6-dev; fi) \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --create-home --shell /usr/sbin/nologin worker
COPY --from=packages /opt/venv /opt/venv
# In a clone under umask 077 only the owner may read the files.
COPY --from=model --chmod=755 /models /models
COPY --from=code --chmod=755 /opt/code /opt/code
# Caches are in /tmp, the writable volume beside a read-only root file system.
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONPATH=/opt/code \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    BASE_MODEL=/models/base \
    HF_HOME=/tmp/huggingface \
    MPLCONFIGDIR=/tmp/matplotlib \
    XDG_CACHE_HOME=/tmp/cache \
    TRITON_CACHE_DIR=/tmp/triton \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 10001:10001
WORKDIR /home/worker
STOPSIGNAL SIGTERM
EXPOSE 9108
# The start loads the base model, which takes long from a slow disk. With STATUS_PORT=0 the container
# always counts as healthy.
HEALTHCHECK --interval=15s --timeout=5s --start-period=5m --retries=4 \
    CMD ["python", "-c", "import os; from urllib.request import urlopen; port = os.environ.get('STATUS_PORT', '9108'); port == '0' or urlopen(f'http://127.0.0.1:{port}/health/live', timeout=4)"]
ENTRYPOINT ["tini", "--", "python", "-m", "entrypoints.worker"]
