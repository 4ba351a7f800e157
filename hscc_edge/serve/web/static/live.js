// Keeps a page up to date: the stream says that something changed, the page asks for itself and swaps its <main>.
// Without this script everything works by reload.
(() => {
  "use strict";
  const main = document.getElementById("main");
  const sign = document.getElementById("live");
  if (!main || !main.dataset.live || !window.EventSource) return;
  const PAUSE_MS = 2000;
  let source = null, timer = null, last = 0, text = "", stale = false;

  const say = (word, look) => {
    if (sign.textContent !== word) sign.textContent = word;
    sign.className = "live " + look;
  };
  const typing = () => {
    const at = document.activeElement;
    const chosen = main.querySelector("input:checked, details[open] form");
    return chosen !== null || (main.contains(at) && ["INPUT", "SELECT", "TEXTAREA"].includes(at.tagName));
  };
  const place = (element) => {
    if (!element || !main.contains(element) || element === main) return null;
    if (element.id) return "#" + CSS.escape(element.id);
    if (element.matches("a[href]")) return 'a[href="' + CSS.escape(element.getAttribute("href")) + '"]';
    if (element.matches("[aria-label]")) return '[aria-label="' + CSS.escape(element.getAttribute("aria-label")) + '"]';
    return null;
  };
  const swap = (page) => {
    const fresh = page.getElementById("main");
    if (!fresh) return;
    const held = place(document.activeElement);
    const unfolded = [...main.querySelectorAll("details[open][id]")].map((item) => item.id);
    const aside = new Map([...main.querySelectorAll(".wide")].map((item) => [item.getAttribute("aria-label"), item.scrollLeft]));
    for (const item of fresh.querySelectorAll("[role=status], [role=alert]")) item.removeAttribute("role");
    main.replaceChildren(...fresh.childNodes);
    for (const id of unfolded) document.getElementById(id)?.setAttribute("open", "");
    for (const item of main.querySelectorAll(".wide")) item.scrollLeft = aside.get(item.getAttribute("aria-label")) || 0;
    if (held) main.querySelector(held)?.focus({ preventScroll: true });
    const [old, now] = [document.querySelector("nav.pages"), page.querySelector("nav.pages")];
    if (old && now && old.innerHTML !== now.innerHTML && !old.contains(document.activeElement)) old.innerHTML = now.innerHTML;
    document.querySelector("footer")?.replaceWith(page.querySelector("footer"));
  };
  const refresh = async () => {
    timer = null;
    if (document.hidden || typing()) { stale = true; return; }
    last = Date.now();
    stale = false;
    try {
      const answer = await fetch(location.href, { headers: { "X-Live": "1" }, cache: "no-store", redirect: "error" });
      if (answer.status === 401) { location.reload(); return; }
      if (!answer.ok) return;
      const body = await answer.text();
      const page = new DOMParser().parseFromString(body, "text/html");
      const found = page.getElementById("main")?.innerHTML || "";
      if (found !== text && !typing()) { text = found; swap(page); }
    } catch { stale = true; }
  };
  const later = () => { timer ??= setTimeout(refresh, Math.max(0, PAUSE_MS - (Date.now() - last))); };
  const open = () => {
    if (source) return;
    source = new EventSource(main.dataset.live);
    source.onopen = () => { say("live", "on"); if (stale) later(); };
    source.onerror = () => { stale = true; say("not live: reload to see changes", "off"); };
    source.addEventListener("changed", later);
    source.addEventListener("ended", () => location.reload());
  };
  const close = () => { source?.close(); source = null; };
  document.addEventListener("visibilitychange", () => {
    if (document.hidden) { close(); return; }
    open();
    later();
  });
  main.addEventListener("focusout", () => { if (stale) later(); });
  window.addEventListener("pagehide", close);
  if (!document.hidden) open();
})();
