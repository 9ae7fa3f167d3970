# docker build -t fmnist-tf .    With NVIDIA's libraries: --build-arg EXTRAS=pretrained,gpu
# docker run --rm -v "$PWD:/work" -u "$(id -u):$(id -g)" fmnist-tf train --recipe lite
ARG PYTHON=3.11
FROM python:${PYTHON}-slim
ARG EXTRAS=pretrained
ENV PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
COPY . /src
RUN pip install --no-cache-dir -c /src/constraints.txt "/src[${EXTRAS}]"
RUN useradd --create-home user && mkdir /work && chown user /work
USER user
# `docker run -u` may name a user who has neither home nor name.
ENV HOME=/tmp USER=user
WORKDIR /work
ENTRYPOINT ["fmnist-tf"]
CMD ["--help"]
