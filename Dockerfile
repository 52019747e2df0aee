# The dashboard and the command line in a container: as an ordinary user, on a root file system that may be read-only.
# Runs lie in /cache and models in /models, which are volumes. See docs/guide/deploy.md.
FROM python:3.11-slim-bookworm AS build

# An index of PyTorch's builds for processors alone; without one its builds for CUDA are installed.
ARG TORCH_INDEX=""
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /source
COPY pyproject.toml requirements.lock requirements.hashes README.md LICENSE CHANGELOG.md CITATION.cff app.py ./
COPY .streamlit .streamlit
COPY pages pages
COPY refusal_core refusal_core
RUN python -m venv /opt/refusal \
    && /opt/refusal/bin/pip install --require-hashes --no-deps -r requirements.hashes \
    && /opt/refusal/bin/pip install ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} -c requirements.lock ".[dashboard,login]"

FROM python:3.11-slim-bookworm
RUN useradd --uid 10001 --create-home --home-dir /home/refusal --shell /usr/sbin/nologin refusal \
    && install -d -o refusal -g refusal /cache /models
COPY --from=build /opt/refusal /opt/refusal
ENV PATH=/opt/refusal/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    HOME=/tmp \
    HF_HOME=/models/hub \
    REFUSAL_CACHE=/cache \
    REFUSAL_MODELS=/models
USER 10001:10001
WORKDIR /cache
VOLUME ["/cache", "/models"]
EXPOSE 8501
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s \
    CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8501/_stcore/health', timeout=4)"]
# Every address of the container: who reaches it is for the published port, the network and the token to say.
ENTRYPOINT ["refusal", "dashboard", "--address", "0.0.0.0"]
