# turborec in a container, for processors; docs/launching.md says how to build it for GPUs and how to use it.
#   docker build --tag turborec .
#   docker run --rm --volume "$PWD:/workspace" turborec train online-retail/sasrec
FROM python:3.12.11-slim-bookworm AS built
# Where PyTorch is taken from: .../whl/cu130 holds it for CUDA 13.0.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PATH=/venv/bin:$PATH
RUN python -m venv /venv
WORKDIR /source
COPY constraints.txt ./
# By itself, so that it comes from this index and everything else from the usual one.
RUN pip install --no-deps --constraint constraints.txt --index-url "$TORCH_INDEX" torch
COPY pyproject.toml README.md LICENSE ./
COPY src src
RUN pip install --constraint constraints.txt setuptools \
 && pip install --constraint constraints.txt --no-build-isolation .

FROM python:3.12.11-slim-bookworm
COPY --from=built /venv /venv
ENV PATH=/venv/bin:$PATH PYTHONUNBUFFERED=1 TURBOREC_HOME=/workspace/turborec
RUN useradd --create-home turborec && install --directory --owner turborec /workspace
# A machine whose volumes only root may write to wants --build-arg RUN_AS=root.
ARG RUN_AS=turborec
USER $RUN_AS
WORKDIR /workspace
ENTRYPOINT ["turborec"]
CMD ["--help"]
