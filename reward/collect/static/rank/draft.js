/**
 * What was entered so far: saved on the server a second after each change, and kept in this browser until the server
 * has acknowledged it. Without a url (an edit of what is stored already) only this browser keeps it.
 *
 * entered() gives the entries; show(state) tells of "unsaved", "saving", "saved", "failed", "kept"; differ(theirs)
 * asks which entries count where another tab has saved others; refused(problem) tells what cannot be saved at all.
 */

import * as memory from "./memory.js";

const SAVE_AFTER = 1000; // milliseconds
const RETRY_AFTER = 5000;

export class Draft {
  constructor({ url, rev, name, put, entered, essence, show, differ, refused }) {
    Object.assign(this, { url, rev, name, put, entered, essence, show, differ, refused });
    Object.assign(this, { isChanged: false, isSending: false, isOver: false, timer: null });
    addEventListener("online", () => this.save());
    addEventListener("pagehide", () => this.save(true));
    document.addEventListener("visibilitychange", () => document.hidden && this.save(true));
  }

  /** What this browser holds that the server has not acknowledged: { rev, payload }, or null. */
  copy() {
    return memory.get(this.name);
  }

  changed() {
    if (this.isOver) return;
    this.isChanged = true;
    memory.set(this.name, { rev: this.rev, payload: this.entered() });
    this.show(this.url ? "unsaved" : "kept");
    this.saveIn(SAVE_AFTER);
  }

  saveIn(milliseconds) {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.save(), milliseconds);
  }

  async save(keepalive = false) {
    if (!this.url || !this.isChanged || this.isSending || this.isOver) return;
    clearTimeout(this.timer);
    Object.assign(this, { isChanged: false, isSending: true });
    this.show("saving");
    const payload = this.entered();
    try {
      this.rev = (await this.put(this.url, { rev: this.rev, payload }, keepalive)).rev;
      if (!this.isOver) this.isChanged ? this.changed() : this.settle();
    } catch (problem) {
      this.isChanged = true;
      if (!this.isOver) this.failed(problem, payload);
    } finally {
      this.isSending = false;
    }
  }

  failed(problem, payload) {
    if (problem.current) return this.compare(problem.current, payload);
    this.show("failed");
    if (problem.passes) this.saveIn(RETRY_AFTER);
    else this.refused(problem);
  }

  /** Another tab has saved other entries, or the answer to a save of these was lost. */
  compare(theirs, mine) {
    this.rev = theirs.rev;
    if (this.essence(theirs.payload ?? {}) === this.essence(mine)) return this.settle();
    this.show("failed");
    this.differ(theirs.payload ?? {});
  }

  /** What is shown is what the server holds. */
  settle() {
    clearTimeout(this.timer);
    this.isChanged = false;
    memory.remove(this.name);
    this.show("saved");
  }

  /** It is submitted, or skipped: nothing is left to save. */
  over() {
    this.isOver = true;
    clearTimeout(this.timer);
    memory.remove(this.name);
  }
}
