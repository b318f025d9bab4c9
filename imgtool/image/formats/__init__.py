"""One module a format. Each has `parse(source) -> Header`: the header of an image that is in this format, or
ImageFormatError. Who reads an image of unknown format asks `imgtool.image.header`."""
