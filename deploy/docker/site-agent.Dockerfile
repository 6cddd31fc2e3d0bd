# syntax=docker/dockerfile:1
# The agent of one hospital, for CPUs or for NVIDIA GPUs. From the root of a checkout:
#   docker build -f deploy/docker/site-agent.Dockerfile -t med-duallora/site-agent:cpu .
#   docker build -f deploy/docker/site-agent.Dockerfile -t med-duallora/site-agent:cuda --build-arg VARIANT=cuda .
# It opens no port and runs on a read-only root: everything the site has is mounted at /site.
ARG PYTHON=python:3.11-slim-bookworm
ARG VARIANT=cpu

FROM ${PYTHON} AS build
ARG UV_VERSION=0.13.9
ENV UV_COMPILE_BYTECODE=1 UV_LINK_MODE=copy VIRTUAL_ENV=/opt/med-duallora
RUN python -m pip install --no-cache-dir --disable-pip-version-check "uv==${UV_VERSION}" \
    && uv venv "${VIRTUAL_ENV}"
WORKDIR /src
COPY pyproject.toml constraints.txt ./

# PyTorch's own CPU build, without CUDA's libraries.
FROM build AS build-cpu
RUN uv pip install --no-cache --torch-backend cpu -c constraints.txt -r pyproject.toml --extra site --extra report --extra dp

# The build with CUDA, its libraries pinned too. The host brings the driver and the NVIDIA container toolkit.
FROM build AS build-cuda
RUN uv pip install --no-cache -c constraints.txt -r pyproject.toml --extra site --extra report --extra dp

# hadolint ignore=DL3006
FROM build-${VARIANT} AS installed
WORKDIR /src
COPY LICENSE README.md ./
COPY aggregator aggregator
COPY site_agent site_agent
COPY shared shared
COPY proto/med_duallora proto/med_duallora
RUN uv pip install --no-cache --no-deps --build-constraints constraints.txt .

FROM ${PYTHON}
RUN groupadd --gid 10001 med && useradd --uid 10001 --gid med --no-create-home --shell /usr/sbin/nologin med \
    && install --directory --owner=med --group=med --mode=0700 /site
COPY --from=installed /opt/med-duallora /opt/med-duallora
# The libraries' own caches go to /tmp, a tmpfs. The two of NVIDIA mean nothing without its container toolkit.
ENV PATH=/opt/med-duallora/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    HOME=/tmp MPLCONFIGDIR=/tmp/matplotlib \
    NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 10001:10001
WORKDIR /site
VOLUME /site
# No HEALTHCHECK: the agent opens no port. It ends when it cannot go on, and the aggregator's page says when it was last heard from.
ENTRYPOINT ["site-agent"]
CMD ["--config", "/site/site.toml"]
