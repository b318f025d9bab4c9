"""Images as OCI artifacts.

An image is a manifest with the artifactType `application/vnd.imgtool.image.v1`, its config, and one layer for each
image of its backing chain, the base first:

| what | media type |
| --- | --- |
| manifest | `application/vnd.oci.image.manifest.v1+json` |
| config | `application/vnd.oci.image.config.v1+json`, a `values.ImageConfig` |
| layer | `application/vnd.imgtool.layer.v1.FORMAT`, FORMAT being QEMU's name: `qcow2`, `raw`, `vmdk`… |

The config is one that clients for containers read too (`skopeo inspect` refuses every other). Its property
`io.imgtool.image` says what the image is, as a `values.Config`. Formerly that was the whole config, of the media type
`application/vnd.imgtool.image.v1+json`.

A layer is the image's file as it is, with one exception: a qcow2 says in its first cluster which file it stands on,
and where that lies differs from host to host. In a layer it names its parent layer by the 64 hexadecimal digits of
that one's SHA-256 (in the `blobs/sha256` folder of an OCI layout a chain therefore can be opened as it lies there),
it carries no anchor, and the rest of its first cluster is zeros. So the same overlay has the same digest wherever it
is pushed from, a base is stored once however many images stand on it, and a pull fetches only what is not there yet.

Annotations of the manifest, which are labels of the config too, and where it says so of each layer:

| annotation | value |
| --- | --- |
| `io.imgtool.format` | the format; of layers too |
| `io.imgtool.virtual-size` | bytes of the disk; of layers too |
| `io.imgtool.content-digest` | `imgtool1:…`, what a guest reads: see `imgtool.qemu.digest`; of layers where known |
| `io.imgtool.parent-digest` | of layers: the digest of the layer beneath |
| `io.imgtool.recipe-digest` | what the image was built from, where it was built by a recipe |
| others | the labels of the recipe, and those that `--annotation` gives |
| `org.opencontainers.image.title` | of layers: the file's name, which other clients save it under |
"""
