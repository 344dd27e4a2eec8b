// A photo as the phone sends it: upright, in a format that every service reads, and no larger than it helps.

import { Trouble } from "./controller.js";

export const LONGEST_SIDE = 1600;
const SMALL_ENOUGH = 1_500_000;
const QUALITY = 0.85;
const SENT_AS_IS = ["image/jpeg", "image/png"];

/** The file to send, and its size in pixels. Throws Trouble for what the phone cannot read as a picture. */
export async function prepared(file) {
  if (!file.size) throw new Trouble({ type: "empty" });
  const picture = await createImageBitmap(file).catch(() => {
    throw new Trouble({ type: "not-a-photo" });
  });
  try {
    const { width, height, shrunk } = fitting(picture.width, picture.height);
    if (!shrunk && file.size <= SMALL_ENOUGH && SENT_AS_IS.includes(file.type)) return { file, width, height };
    const smaller = await drawn(picture, width, height);
    return { file: smaller, width, height };
  } finally {
    picture.close();
  }
}

/** Width and height within LONGEST_SIDE, in the same proportions. */
export function fitting(width, height) {
  const scale = Math.min(1, LONGEST_SIDE / Math.max(width, height));
  return { width: Math.round(width * scale), height: Math.round(height * scale), shrunk: scale < 1 };
}

/** `source` (a picture, or the frame that a video shows) as a JPEG. */
export async function drawn(source, width, height) {
  const canvas = document.createElement("canvas");
  canvas.width = width;
  canvas.height = height;
  canvas.getContext("2d").drawImage(source, 0, 0, width, height);
  const file = await new Promise((done) => canvas.toBlob(done, "image/jpeg", QUALITY));
  canvas.width = 0; // phones give a page little memory for canvases, and take it back late
  if (!file) throw new Trouble({ type: "not-a-photo" });
  return file;
}
