# syntax=docker/dockerfile:1
# The aggregator, without torch. From the root of a checkout:
#   docker build -f deploy/docker/aggregator.Dockerfile -t med-duallora/aggregator .
# It runs on a read-only root: its store and its TLS files are mounted.
ARG PYTHON=python:3.11-slim-bookworm

FROM ${PYTHON} AS build
ARG UV_VERSION=0.13.9
ENV UV_COMPILE_BYTECODE=1 UV_LINK_MODE=copy VIRTUAL_ENV=/opt/med-duallora
RUN python -m pip install --no-cache-dir --disable-pip-version-check "uv==${UV_VERSION}" \
    && uv venv "${VIRTUAL_ENV}"
WORKDIR /src
# What the project needs changes seldom, the project often: two layers.
COPY pyproject.toml constraints.txt ./
RUN uv pip install --no-cache -c constraints.txt -r pyproject.toml --extra postgres --extra traces
COPY LICENSE README.md ./
COPY aggregator aggregator
COPY site_agent site_agent
COPY shared shared
COPY proto/med_duallora proto/med_duallora
RUN uv pip install --no-cache --no-deps --build-constraints constraints.txt .

FROM ${PYTHON}
RUN groupadd --gid 10001 med && useradd --uid 10001 --gid med --no-create-home --shell /usr/sbin/nologin med \
    && install --directory --owner=med --group=med --mode=0700 /store
COPY --from=build /opt/med-duallora /opt/med-duallora
COPY deploy/docker/healthy.py /opt/med-duallora/healthy.py
ENV PATH=/opt/med-duallora/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
USER 10001:10001
VOLUME /store
EXPOSE 50051 8080
# Of a replica that serves with --http on port 8080. Kubernetes asks by itself and takes no notice of this.
HEALTHCHECK --interval=10s --timeout=5s --start-period=20s CMD ["python", "/opt/med-duallora/healthy.py", "8080"]
ENTRYPOINT ["aggregator"]
CMD ["--help"]
