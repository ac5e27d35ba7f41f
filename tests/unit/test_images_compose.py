"""The images of compose files, written as people write them."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent

import pytest

from blocks.errors import CrossgapError, InvalidInput, NotFound, SeveralFailures
from tasks.images.compose.images import compose_images, expand_images


def written(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(dedent(text), encoding="utf-8")
    return folder


def images(folder: Path, text: str, **more: str) -> tuple[str, ...]:
    """Write compose.yaml and other files, and read the folder."""
    return compose_images(written(folder, {"compose.yaml": text, **more}))


RAGFLOW = {
    "docker-compose.yml": """\
        include:
          - ./docker-compose-base.yml

        # 生产环境请修改 .env
        services:
          ragflow-cpu:
            depends_on:
              mysql:
                condition: service_healthy
            profiles:
              - cpu
            image: ${RAGFLOW_IMAGE}
            # image: infiniflow/ragflow:nightly
            ports:
              - ${SVR_HTTP_PORT}:9380
              - 80:80
            env_file: .env
            environment: &env
              - TZ=${TZ}
          ragflow-gpu:
            profiles:
              - gpu
            image: ${RAGFLOW_IMAGE}
            environment: *env
        """,
    "docker-compose-base.yml": """\
        services:
          es01:
            profiles: [elasticsearch]
            image: elasticsearch:${STACK_VERSION}
            mem_limit: ${MEM_LIMIT}
          infinity:
            image: 'infiniflow/infinity:v0.6.0-dev3'   # 向量库
          mysql:
            # mysql:5.7 linux/x86 image
            image: "mysql:8.0.39"
            healthcheck:
              test: ["CMD", "mysqladmin" ,"ping", "-uroot", "-p${MYSQL_PASSWORD}"]
          minio:
            image: quay.io/minio/minio:RELEASE.2025-06-13T11-33-47Z
          redis:
            image: ${REDIS_IMAGE:-valkey/valkey:8}
        volumes:
          esdata01:
            driver: local
        """,
    ".env": """\
        # 数据库
        DOC_ENGINE=${DOC_ENGINE:-elasticsearch}
        COMPOSE_PROFILES=${DOC_ENGINE}
        STACK_VERSION=8.11.3
        export MYSQL_PASSWORD='infini#rag$flow'
        # RAGFLOW_IMAGE=infiniflow/ragflow:v0.19.0
        RAGFLOW_IMAGE="infiniflow/ragflow:v0.20.0" # 带模型
        """,
}


@pytest.mark.parametrize("name", ["", "docker-compose.yml"])
def test_a_stack_is_read_with_its_variables_profiles_and_included_files(
    tmp_path: Path, name: str
) -> None:
    assert compose_images(written(tmp_path / "部署 一", RAGFLOW) / name) == (
        "elasticsearch:8.11.3",
        "infiniflow/infinity:v0.6.0-dev3",
        "mysql:8.0.39",
        "quay.io/minio/minio:RELEASE.2025-06-13T11-33-47Z",
        "valkey/valkey:8",
        "infiniflow/ragflow:v0.20.0",
    )


def test_names_are_docker_s_own_and_each_comes_once(tmp_path: Path) -> None:
    found = images(
        tmp_path,
        """\
        services:
          a: {image: redis}
          b: {image: docker.io/library/redis:latest}
          c: {image: "registry.example.com:5000/team/app:1.10"}
          d: {image: app@sha256:%s}
        """
        % ("a" * 64),
    )
    assert found == (
        "redis:latest",
        "registry.example.com:5000/team/app:1.10",
        "app@sha256:" + "a" * 64,
    )


def test_the_environment_of_the_worker_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TAG", "worker")
    assert images(tmp_path, "services: {a: {image: 'app:${TAG:-file}'}}") == ("app:file",)


def test_anchors_and_merge_keys_are_followed(tmp_path: Path) -> None:
    text = """\
        x-base: &base
          image: app:1
          restart: always
        x-more: &more {labels: {a: b}}
        services:
          one: {<<: *base}
          two:
            <<: [*more, *base]
            image: app:2
        """
    assert images(tmp_path, text) == ("app:1", "app:2")


def test_plain_values_stay_as_they_are_written(tmp_path: Path) -> None:
    text = """\
        services:
          one:
            image: 8.10
            ports: [22:22]
            environment: {DATE: 2024-99-99, EQUALS: =, YES: on}
            command: !custom {what: ever}
        """
    assert images(tmp_path, text) == ("8.10:latest",)


def test_a_folder_is_read_with_its_override_file_and_a_file_alone(tmp_path: Path) -> None:
    folder = written(
        tmp_path,
        {
            "docker-compose.yaml": "services: {a: {image: app:1}, b: {image: base:1}}",
            "docker-compose.override.yml": "services: {a: {image: app:2}, b: {labels: {c: d}}}",
        },
    )
    assert compose_images(folder) == ("app:2", "base:1")
    assert compose_images(folder / "docker-compose.yaml") == ("app:1", "base:1")


def test_of_several_usual_names_compose_s_first_counts(tmp_path: Path) -> None:
    names = ["docker-compose.yaml", "docker-compose.yml", "compose.yml", "compose.yaml"]
    for number, name in enumerate(names):
        written(tmp_path, {name: f"services: {{a: {{image: 'app:{number}'}}}}"})
        assert compose_images(tmp_path) == (f"app:{number}",)


def test_compose_file_in_env_names_the_files_of_a_folder(tmp_path: Path) -> None:
    found = images(
        tmp_path,
        "services: {a: {image: wrong:1}}",
        **{
            ".env": "COMPOSE_FILE=base.yml:prod.yml",
            "base.yml": "services: {a: {image: app:1}}",
            "prod.yml": "services: {b: {image: proxy:1}}",
        },
    )
    assert found == ("app:1", "proxy:1")


def test_what_an_override_takes_away_or_replaces_is_gone(tmp_path: Path) -> None:
    found = images(
        tmp_path,
        """\
        services:
          a: {image: "gone:${UNSET}"}
          b: {image: gone:2, build: .}
          c: {image: gone:3, build: .}
          d: {image: kept:4}
        """,
        **{
            "compose.override.yaml": """\
            services:
              a: !reset null
              b: !override {image: new:2}
              c: {image: !override new:3, build: !reset null}
              d: {ports: !override [80], environment: !reset {}}
            """
        },
    )
    assert found == ("new:2", "new:3", "kept:4")


def test_a_service_that_is_replaced_keeps_nothing(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"service 'a' .*built and has no name"):
        images(
            tmp_path,
            "services: {a: {image: gone:1}}",
            **{"compose.override.yaml": "services: {a: !override {build: .}}"},
        )


def test_an_image_that_a_later_file_replaces_needs_no_variables(tmp_path: Path) -> None:
    found = images(
        tmp_path,
        "services: {a: {image: '${UNSET}'}}",
        **{"compose.override.yaml": "services: {a: {image: app:1}}"},
    )
    assert found == ("app:1",)


def test_services_are_extended_in_a_file_and_across_files(tmp_path: Path) -> None:
    found = images(
        tmp_path,
        """\
        services:
          web: {extends: base, command: web}
          base: {image: app:1}
          db: {extends: {file: common/db.yml, service: primary}}
          own: {extends: {service: base}, image: own:1}
        """,
        **{
            "common/db.yml": """\
            services:
              primary: {extends: {file: deeper.yml, service: any}}
              unused: {image: unused:1}
            """,
            "common/deeper.yml": "services: {any: {image: 'db:${TAG}'}}",
            ".env": "TAG=16",
            "common/.env": "TAG=17",
        },
    )
    assert found == ("app:1", "db:16", "own:1")


def test_an_included_file_has_variables_of_its_own_which_the_outer_ones_outweigh(
    tmp_path: Path,
) -> None:
    found = images(
        tmp_path,
        """\
        include:
          - common/compose.yaml
          - path: [common/compose.yaml, extra.yaml]
            project_directory: elsewhere
            env_file: [one.env, two.env]
        services:
          a: {image: app:1}
        """,
        **{
            ".env": "OUTER=outer",
            "common/.env": "OUTER=inner\nINNER=inner",
            "common/compose.yaml": "services: {b: {image: 'b:${OUTER}-${INNER:-none}'}}",
            "extra.yaml": "services: {c: {image: 'c:${INNER}-${TWO}'}}",
            "one.env": "INNER=one",
            "two.env": "INNER=two\nTWO=$INNER",
            "elsewhere/.env": "INNER=elsewhere",
        },
    )
    assert found == ("b:outer-inner", "c:two-two", "app:1")


def test_an_included_file_without_variables_of_its_own_has_the_outer_ones(tmp_path: Path) -> None:
    found = images(
        tmp_path,
        "include: [common/compose.yaml]",
        **{".env": "TAG=1", "common/compose.yaml": "services: {a: {image: 'app:$TAG'}}"},
    )
    assert found == ("app:1",)


def test_included_images_come_in_the_order_of_the_files(tmp_path: Path) -> None:
    found = images(
        tmp_path,
        "include: [z.yaml, y.yaml]\nservices: {z: {command: x}, a: {image: app:1}}",
        **{
            "y.yaml": "services: {y: {image: y:1}}",
            "z.yaml": "services: {z: {image: z:1}, x: {image: x:1}}",
        },
    )
    assert found == ("z:1", "x:1", "y:1", "app:1")


def test_a_built_image_with_a_name_counts(tmp_path: Path) -> None:
    assert images(tmp_path, "services: {a: {build: ., image: mine:1}}") == ("mine:1",)


def test_a_service_that_something_else_provides_needs_no_image(tmp_path: Path) -> None:
    text = "services: {a: {provider: {type: model}}, b: {image: app:1}}"
    assert images(tmp_path, text) == ("app:1",)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("services: {web: {build: .}}", r"service 'web' in .*compose\.yaml: .*built.*Add image:"),
        ("services: {web: {ports: [80]}}", "service 'web' .*names no image"),
        ("services: {web: {image: '${EMPTY}'}}", "service 'web' .*names no image"),
        ("services: {web: {image: 'App:1'}}", "image 'App:1' of service 'web' .*capital"),
        ("services: {web: {image: 'a:${TAG}'}}", r"service 'web' .*TAG is not set.*\.env"),
        ("services: {web: {image: 'a:${TAG'}}", "service 'web' .*does not know"),
        ("services: {web: {image: 'a:${TAG:?ask Li}'}}", r"TAG has to be set \(ask Li\)"),
        ("services: {web: {image: [a]}}", "service 'web' .*no text"),
        ("services: {web: null}", "service 'web' that is no mapping"),
        ("services: [web]", "services that are no mapping"),
        ("- a", "holds no mapping"),
        ("", "holds no mapping"),
        ("services:\n  a: {image: [}\n", r"compose\.yaml, line 2: the file is no YAML"),
        ("services: {a: {image: !!int x}}", "cannot be read"),
        ("services: {a: {image: !!python/name:os.system x}}", "no YAML"),
        ("include: [compose.yaml]", "includes itself"),
        ("include: [{env_file: a}]", "include without a path"),
        ("include: ['https://git.example.com/a.yml']", "lies elsewhere"),
        ("include: ['oci://registry.example.com/a']", "lies elsewhere"),
        ("services: {a: {extends: a}}", "service 'a' .*extends itself"),
        ("services: {a: {extends: b}, b: {extends: a}}", "extends itself"),
    ],
)
def test_what_cannot_be_meant_is_named_with_its_place(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(InvalidInput, match=said):
        images(tmp_path, text, **{".env": "EMPTY="})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("services: {a: {extends: b}, c: {image: x}}", "no such service .*has a, c"),
        ("services: {a: {extends: {file: b.yml, service: a}}}", r"b\.yml: there is no such file"),
        ("include: [bass.yaml]", r"bass\.yaml: .*no such file.* has base\.yaml"),
        ("include: [{path: base.yaml, env_file: no.env}]", r"no\.env: there is no such file"),
    ],
)
def test_what_is_not_there_is_named(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(NotFound, match=said):
        images(tmp_path, text, **{"base.yaml": "services: {}"})


def test_a_circle_of_files_is_found(tmp_path: Path) -> None:
    files = {
        "a/one.yaml": "include: [../b/two.yaml]",
        "b/two.yaml": "include: [../a/../a/one.yaml]",
    }
    with pytest.raises(InvalidInput, match=r"two\.yaml: the file includes itself"):
        compose_images(written(tmp_path, files) / "a/one.yaml")
    extending = "services: {s: {extends: {file: ../%s, service: s}}}"
    files = {"c/one.yaml": extending % "d/two.yaml", "d/two.yaml": extending % "c/one.yaml"}
    with pytest.raises(InvalidInput, match="extends itself"):
        compose_images(written(tmp_path, files) / "c/one.yaml")


def test_a_missing_file_names_those_that_may_be_meant(tmp_path: Path) -> None:
    written(tmp_path, {"stack/docker-compose.yml": "", "stack/notes.txt": ""})
    for wrong, close in [
        ("stack/docker-compos.yml", "docker-compose.yml"),
        ("stak/compose.yaml", "stack"),
        ("stack/docker-compose.yml/x", "docker-compose.yml"),
    ]:
        with pytest.raises(NotFound, match=f"no such file.*has {close}"):
            compose_images(tmp_path / wrong)
    (tmp_path / "stack/docker-compose.yml").rename(tmp_path / "stack/prod.yml")
    with pytest.raises(NotFound, match=r"stack/compose\.yaml.*has prod\.yml"):
        compose_images(tmp_path / "stack")
    with pytest.raises(NotFound, match="no such file"):
        compose_images(Path("/no/such/folder/at/all"))


def test_all_faults_are_reported_in_one_message(tmp_path: Path) -> None:
    text = "services: {a: {image: '$ONE'}, b: {build: .}, c: {image: good:1}, d: {image: '$TWO'}}"
    with pytest.raises(SeveralFailures) as failed:
        images(tmp_path, text)
    assert len(failed.value.failures) == 3
    for word in ("ONE", "'b'", "TWO"):
        assert word in str(failed.value)


def test_files_in_other_encodings_are_told_or_do_no_harm(tmp_path: Path) -> None:
    written(tmp_path, {"compose.yaml": "services: {a: {image: 'app:${TAG}'}}"})
    (tmp_path / ".env").write_bytes("# 版本\nTAG=1 # 旧\n".encode("gb18030"))
    assert compose_images(tmp_path) == ("app:1",)
    (tmp_path / ".env").write_bytes("\ufeffTAG=3".encode())
    assert compose_images(tmp_path) == ("app:3",)
    (tmp_path / "compose.yaml").write_bytes("\ufeffservices: {a: {image: app:2}}".encode())
    assert compose_images(tmp_path) == ("app:2",)
    (tmp_path / "compose.yaml").write_bytes("# 版本\nservices: {}".encode("gb18030"))
    with pytest.raises(InvalidInput, match="not in UTF-8"):
        compose_images(tmp_path)


def test_no_secret_of_the_env_file_is_in_an_error(tmp_path: Path) -> None:
    with pytest.raises(CrossgapError) as failed:
        images(tmp_path, "services: {a: {image: app:1}}", **{".env": "PASSWORD hunter2"})
    assert "hunter2" not in str(failed.value)


def test_entries_of_both_kinds_are_expanded_in_order(tmp_path: Path) -> None:
    written(tmp_path, {"a.yml": "services: {a: {image: app:1}, b: {image: base:1}}"})
    entries = ["first:1", f" compose: {tmp_path}/a.yml", "base:1", "last:1"]
    assert expand_images(entries) == ("first:1", "app:1", "base:1", "last:1")
    assert expand_images([]) == ()


def test_a_path_may_begin_with_the_home_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(tmp_path, {"a.yml": "services: {a: {image: app:1}}"})
    monkeypatch.setenv("HOME", str(tmp_path))
    assert expand_images(["compose:~/a.yml"]) == ("app:1",)


def test_faulty_entries_are_reported_together(tmp_path: Path) -> None:
    written(tmp_path, {"a.yml": "services: {a: {image: $A}, b: {image: $B}}"})
    entries = ["compose:", f"compose:{tmp_path}/none.yml", f"compose:{tmp_path}/a.yml", "app:1"]
    with pytest.raises(SeveralFailures, match=r"(?s)no file is named.*no such file") as failed:
        expand_images(entries)
    assert len(failed.value.failures) == 4
