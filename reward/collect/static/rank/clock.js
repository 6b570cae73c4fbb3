/** Seconds that somebody was at work on the page, and when they last were. */

const IDLE_AFTER = 60000; // milliseconds
const SIGNS = ["pointerdown", "pointermove", "keydown", "scroll", "wheel"];

export class Clock {
  constructor() {
    this.seconds = 0;
    this.last = Date.now();
    for (const sign of SIGNS) addEventListener(sign, () => (this.last = Date.now()), { passive: true, capture: true });
    setInterval(() => (this.seconds += this.wasActive(IDLE_AFTER)), 1000);
  }

  wasActive(within) {
    return !document.hidden && Date.now() - this.last < within;
  }
}
