"""The services that the cold start is measured with, as folders to be packed."""

from __future__ import annotations

from pathlib import Path

FLASK = "flask==3.1.2"

MINIMAL_DOCKERFILE = """FROM python:3.6-alpine
COPY www /www
EXPOSE 8080
CMD ["/bin/busybox", "httpd", "-f", "-p", "8080", "-h", "/www"]
"""
FLASK_DOCKERFILE = f"""FROM python:3.6-alpine
RUN pip install {FLASK}
COPY app.py .
EXPOSE 8080
CMD ["python3", "app.py"]
"""
FLASK_APP = """from flask import Flask

app = Flask(__name__)


@app.get("/")
def hello():
    return "hello"


app.run("0.0.0.0", 8080)
"""
DESCRIPTION = """tosca_definitions_version: tosca_simple_profile_for_microservices_1_0_0
topology_template:
  node_templates:
    service:
      type: tosca.nodes.microservices.docker_container
      properties:
        id: {service}
        name: {service}
        category: /benchmark
        container_port: 8080
        mem_requirement: 64
        alive_time: 0
"""
IMAGE_ARTIFACT = """      artifacts:
        image:
          type: tosca.artifacts.microservices.OCIImage
          file: image.tar
"""
META = "TOSCA-Meta-File-Version: 1.0\nCSAR-Version: 1.1\nCreated-By: benchmark\nEntry-Definitions: service.yaml\n"


def minimal(folder: Path, service: str = "minimal") -> Path:
    """busybox httpd with one page: nothing but the engine's own work."""
    _describe(folder, service, "        directory: src\n")
    _write(folder / "src/Dockerfile", MINIMAL_DOCKERFILE)
    _write(folder / "src/www/index.html", f"hello from {service}")
    return folder


def flask(folder: Path) -> Path:
    _describe(folder, "flask", "        directory: src\n")
    _write(folder / "src/Dockerfile", FLASK_DOCKERFILE)
    _write(folder / "src/app.py", FLASK_APP)
    return folder


def archived(folder: Path, service: str, image: Path) -> Path:
    """A service that brings its image along (`docker save`)."""
    _describe(folder, service, IMAGE_ARTIFACT)
    (folder / "image.tar").hardlink_to(image)
    return folder


def _describe(folder: Path, service: str, how: str) -> None:
    _write(folder / "service.yaml", DESCRIPTION.format(service=service) + how)
    _write(folder / "TOSCA-Metadata/TOSCA.meta", META)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
