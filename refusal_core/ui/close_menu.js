// Closes the menu of pages when one is chosen, where the menu lies over the page. Streamlit does so for its own menu.

export default function() {
    const close = (event) => {
        if (!event.target.closest(MENU_LINK) || !matchMedia(MENU_LIES_OVER).matches) return;
        const button = document.querySelector(MENU_CLOSES);
        if (button) button.click();
    };
    document.addEventListener("click", close);
    return () => document.removeEventListener("click", close);
}
