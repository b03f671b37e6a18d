# Training image. Build: docker build -t guie .
# faiss on the GPU: docker build --build-arg SYNC="--no-dev --no-group cpu --extra gpu" -t guie .
# Run: docker run --gpus all --shm-size 8g -v "$PWD/data:/guie/data" -v "$PWD/runs:/guie/runs" guie +exp=NAME
FROM python:3.11-slim

# libgomp: faiss and torch.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libgomp1 \
    && rm -rf /var/lib/apt/lists/*
RUN pip install --no-cache-dir uv

ARG SYNC="--no-dev"

WORKDIR /guie
ENV UV_LINK_MODE=copy UV_NO_CACHE=1 GUIE_DATA=/guie/data

# Dependencies change seldom and weigh 6 GB: a layer of their own, before the sources.
COPY pyproject.toml README.md LICENSE ./
RUN uv sync $SYNC --no-install-project

COPY configs configs
COPY src src
RUN uv sync $SYNC

ENTRYPOINT ["uv", "run", "--no-sync", "guie-train"]
