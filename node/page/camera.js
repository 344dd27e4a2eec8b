// The live camera. Browsers give it to secure origins only; the file chooser with `capture` works everywhere.

import { Trouble } from "./controller.js";
import { drawn, fitting } from "./photo.js";

export const cameraOffered = () => isSecureContext && Boolean(navigator.mediaDevices?.getUserMedia);

/** A camera whose picture `video` shows until `close`. Throws Trouble if there is none, or it is not allowed. */
export class Camera {
  #stream;
  #video;

  static async open(video) {
    const camera = new Camera();
    const wanted = { video: { facingMode: "environment", width: { ideal: 1920 } } };
    camera.#stream = await navigator.mediaDevices.getUserMedia(wanted).catch(() => {
      throw new Trouble({ type: "no-camera" });
    });
    camera.#video = video;
    video.srcObject = camera.#stream;
    await video.play();
    return camera;
  }

  /** What it sees now, as a JPEG. */
  async shot() {
    const { width, height } = fitting(this.#video.videoWidth, this.#video.videoHeight);
    return drawn(this.#video, width, height);
  }

  close() {
    for (const track of this.#stream.getTracks()) track.stop();
    this.#video.srcObject = null;
  }
}
