# CPU image of the worker on its embedded adapters. A GPU image differs in the torch that it installs.
FROM python:3.11-slim
RUN useradd --create-home worker
WORKDIR /app
COPY pyproject.toml constraints.txt README.md ./
COPY domain domain
COPY application application
COPY adapters adapters
COPY entrypoints entrypoints
COPY assets assets
RUN pip install --no-cache-dir --extra-index-url https://download.pytorch.org/whl/cpu \
    -c constraints.txt .
USER worker
WORKDIR /home/worker
ENTRYPOINT ["python", "-m", "entrypoints.worker"]
