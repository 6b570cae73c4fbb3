/**
 * Dragging a card by its handle, with mouse, pen, or finger. Meanwhile the cards are short, so that all places are in
 * reach; a label beside the pointer says what dropping would do.
 *
 * drop(id, target, way) is called at the end. A target is { zone: "tray" | "unacceptable" } or
 * { zone: "place", index, where: "before" | "into" | "after" }.
 */

const FAR = 4; // pixels: less is a press, not a drag
const EDGE = 70; // pixels from the top or the bar where the page scrolls by itself
const root = document.documentElement;

export class Drag {
  constructor(board, ghost, bar, { ranking, drop }) {
    Object.assign(this, { board, ghost, bar, ranking, drop, now: null });
    board.form.addEventListener("pointerdown", (event) => this.press(event));
    board.form.addEventListener("pointermove", (event) => this.move(event));
    board.form.addEventListener("pointerup", () => this.end(true));
    board.form.addEventListener("pointercancel", () => this.end(false));
  }

  press(event) {
    const handle = event.target.closest(".handle");
    if (!handle || event.button !== 0 || !event.isPrimary) return;
    event.preventDefault(); // no selection of text
    handle.setPointerCapture(event.pointerId);
    const id = handle.closest("[data-response]").dataset.response;
    this.now = { id, handle, x: event.clientX, y: event.clientY, way: event.pointerType, started: false, target: null };
  }

  move({ clientX, clientY }) {
    if (!this.now) return;
    if (!this.now.started && Math.hypot(clientX - this.now.x, clientY - this.now.y) < FAR) return;
    if (!this.now.started) this.start();
    Object.assign(this.now, { x: clientX, y: clientY });
    this.aim();
  }

  /** The page gets shorter; the handle stays under the pointer. */
  start() {
    const { id, handle } = this.now;
    const top = handle.getBoundingClientRect().top;
    this.now.started = true;
    this.board.cards.get(id).classList.add("dragged");
    root.setAttribute("data-dragging", "");
    scrollBy({ top: handle.getBoundingClientRect().top - top, behavior: "instant" });
    this.ghost.hidden = false;
    requestAnimationFrame(() => this.scrollAtEdges());
  }

  end(drops) {
    if (!this.now) return;
    const { id, started, target, way } = this.now;
    this.now = null;
    if (!started) return;
    root.removeAttribute("data-dragging");
    this.board.cards.get(id).classList.remove("dragged");
    this.ghost.hidden = true;
    this.mark(null);
    if (drops && target) this.drop(id, target, way);
  }

  aim() {
    const { id, x, y } = this.now;
    const box = document.elementFromPoint(x, y)?.closest("[data-zone]");
    const target = box && this.targetIn(box, x, y);
    this.now.target = target;
    this.mark(box, target?.where);
    this.ghost.textContent = target ? this.hint(id, target) : this.board.letter(id);
    const left = Math.min(x + 14, innerWidth - this.ghost.offsetWidth - 4);
    this.ghost.style.transform = `translate(${left}px, ${y - 18}px)`;
  }

  targetIn(box, x, y) {
    if (box.dataset.zone !== "place") return { zone: box.dataset.zone };
    const index = Number(box.dataset.index);
    const { left, top, width, height } = box.getBoundingClientRect();
    const share = root.hasAttribute("data-columns") ? (x - left) / width : (y - top) / height;
    const edge = this.ranking().allowTies ? 0.3 : 0.5;
    const side = share < edge ? "before" : share >= 1 - edge ? "after" : "into";
    return { zone: "place", index, where: this.othersIn(index).length ? side : "into" };
  }

  othersIn(index) {
    return this.ranking().places[index].filter((id) => id !== this.now.id);
  }

  mark(box, where = "into") {
    for (const marked of this.board.form.querySelectorAll("[data-drop]")) marked.removeAttribute("data-drop");
    if (box) box.dataset.drop = where;
  }

  hint(id, { zone, index, where }) {
    const letter = this.board.letter(id);
    if (zone === "tray") return `${letter}: not ranked`;
    if (zone === "unacceptable") return `${letter}: unacceptable`;
    const others = this.othersIn(index).map((other) => this.board.letter(other));
    if (!others.length) return `${letter}: rank ${index + 1}`;
    if (where === "into") return `${letter} ties with ${others.join(", ")}`;
    return `${letter} ${where === "before" ? "above" : "below"} ${others.join(", ")}`;
  }

  scrollAtEdges() {
    if (!this.now?.started) return;
    const { y } = this.now;
    const bottom = innerHeight - this.bar.offsetHeight - EDGE;
    const over = y < EDGE ? y - EDGE : Math.max(0, y - bottom);
    if (over) {
      scrollBy({ top: over / 5, behavior: "instant" });
      this.aim();
    }
    requestAnimationFrame(() => this.scrollAtEdges());
  }
}
