"""Reads what pictures of `sdxl` say about their making, with readers that know nothing of sdxl:
Pillow for EXIF, XMP and text chunks, and Python's XML parser.

    sdxl generate "a café, 猫 <b> & 🐱" --seed 5 --output a.png      # also a.jpg and a.webp
    python tools/formats/read.py a.png a.jpg a.webp

Exits with 1 unless all files say the same and have the source type.
"""

import json
import sys
import xml.etree.ElementTree as ET

from PIL import Image

IPTC = "{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}DigitalSourceType"
RECIPE = "{urn:sdxl:xmp:1.0:}recipe"
EXIF_IFD, USER_COMMENT = 0x8769, 0x9286


def said(path):
    picture = Image.open(path)
    picture.load()
    packet = picture.info.get("xmp") or picture.info["XML:com.adobe.xmp"]
    if isinstance(packet, str):
        packet = packet.encode()
    xmp = ET.fromstring(packet.rstrip(b"\0"))
    source = xmp.find(f".//{IPTC}").text
    if picture.format == "PNG":
        parameters, recipe = picture.info["parameters"], picture.info["sdxl-recipe"]
    else:
        comment = picture.getexif().get_ifd(EXIF_IFD)[USER_COMMENT]
        assert comment[:8] == b"UNICODE\0", comment[:8]
        parameters = comment[8:].decode("utf-16-be")
        recipe = xmp.find(f".//{RECIPE}").text
    return {"source": source, "parameters": parameters, "recipe": json.loads(recipe)}


def main(paths):
    first = said(paths[0])
    print(first["parameters"], first["source"], sep="\n")
    assert first["source"].startswith("http://cv.iptc.org/newscodes/digitalsourcetype/")
    for path in paths:
        same = said(path) == first
        print(f"{path}: {'the same' if same else 'NOT the same'}")
        if not same:
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
