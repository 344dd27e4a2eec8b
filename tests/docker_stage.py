"""A small web service for tests that need containers: busybox's httpd, which is in the base image."""

from __future__ import annotations

from tests.conftest import BASE_IMAGE

ALIASES = {"busybox:*": BASE_IMAGE, "python:3.*": BASE_IMAGE}
"""What an operator writes where no registry is in reach."""

DOCKERFILE = 'FROM busybox\nCOPY www /www\nCMD ["/bin/busybox", "httpd", "-f", "-p", "8080", "-h", "/www"]\n'
WEB_FILES = {"src/Dockerfile": DOCKERFILE, "src/www/index.html": "hello"}
