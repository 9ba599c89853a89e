# The program with everything that it imports. Its steps are the Makefile's; `tests/test_release.py` compares them.
#
#   docker build -t assay .
#   docker run --rm -v "$PWD:/work" -v "$HOME/.config:/assay/config" \
#     -v "$HOME/.local/state:/assay/state" assay run my.toml
#
# The last two mounts keep the signing key and the heads of the journal. Without them each container makes a new key, and
# what an earlier one signed is not trusted: a lost key closes the gate (77).
#
# A node of GPUs needs the NVIDIA container toolkit and `--gpus all`. A site's rules count where /etc/assay is mounted.
FROM python:3.12-slim-bookworm

# g++ compiles DeepSpeed's and torch's extensions at run time; git notes the commit of a run's file.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ git make \
    && rm -rf /var/lib/apt/lists/*

ENV XDG_CONFIG_HOME=/assay/config XDG_STATE_HOME=/assay/state
WORKDIR /opt/assay
COPY . .
RUN make install PYTHON=python3

ENV PATH="/opt/assay/.venv/bin:$PATH"
WORKDIR /work
ENTRYPOINT ["assay"]
CMD ["--help"]
